//! Who a process is: users and groups by name, and becoming another one.

use std::{
    ffi::{CString, OsStr},
    io,
    os::unix::ffi::OsStrExt,
    ptr,
};

/// The most bytes that an entry of the databases of users and groups may take.
const LONGEST_ENTRY: usize = 1 << 20;

/// The number of the user of that name.
#[must_use]
pub fn user_number(name: &OsStr) -> Option<u32> {
    let name = CString::new(name.as_bytes()).ok()?;
    look_up(|buffer| {
        // SAFETY: all zeroes is a valid `passwd`: numbers and null pointers.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found: *mut libc::passwd = ptr::null_mut();
        // SAFETY: the name ends with a zero, the entry and the result are valid for writing, and the buffer
        // is as long as it is said to be; all of them outlive the call.
        let code = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                &raw mut entry,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &raw mut found,
            )
        };
        (code, (!found.is_null()).then_some(entry.pw_uid))
    })
}

/// The number of the group of that name.
#[must_use]
pub fn group_number(name: &OsStr) -> Option<u32> {
    let name = CString::new(name.as_bytes()).ok()?;
    look_up(|buffer| {
        // SAFETY: all zeroes is a valid `group`: a number and null pointers.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        let mut found: *mut libc::group = ptr::null_mut();
        // SAFETY: as for users.
        let code = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                &raw mut entry,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &raw mut found,
            )
        };
        (code, (!found.is_null()).then_some(entry.gr_gid))
    })
}

/// Asks with a buffer that grows until it is long enough.
fn look_up(mut ask: impl FnMut(&mut [u8]) -> (libc::c_int, Option<u32>)) -> Option<u32> {
    let mut buffer = vec![0; 4096];
    loop {
        match ask(&mut buffer) {
            (0, number) => return number,
            (libc::ERANGE, _) if buffer.len() < LONGEST_ENTRY => buffer.resize(buffer.len() * 2, 0),
            (libc::EINTR, _) => {}
            _ => return None,
        }
    }
}

/// Becomes the group and then the user of these numbers, with all threads, for good.
///
/// # Errors
/// `EPERM` where we may not.
pub fn become_identity(user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    if let Some(group) = group {
        // SAFETY: the list has one member and outlives the call.
        check(unsafe { libc::setgroups(1, &raw const group) })?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::setgid(group) })?;
    }
    if let Some(user) = user {
        // SAFETY: no memory is involved.
        check(unsafe { libc::setuid(user) })?;
    }
    Ok(())
}

/// Keeps all memory of this process in memory, now and later.
///
/// # Errors
/// `ENOMEM` or `EPERM` where the limit of locked memory is too low.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: no memory is handed over, and locked memory is used like any other.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri knows nothing of getpwnam_r")]
    fn root_is_nobody_else() {
        assert_eq!(user_number(OsStr::new("root")), Some(0));
        assert_eq!(group_number(OsStr::new("root")), Some(0));
        assert_eq!(user_number(OsStr::new("no such user")), None);
        assert_eq!(group_number(OsStr::from_bytes(b"a\0b")), None);
    }

    #[test]
    fn who_asks_for_nothing_stays_who_they_are() {
        become_identity(None, None).expect("nothing to do");
    }
}
