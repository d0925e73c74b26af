//! Copies a whole image to standard output: `simple_copy URI >OUTPUT`.

use std::{
    env,
    error::Error,
    io::{Write, stdout},
};

use blockferry::client::blocking::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let uri = env::args().nth(1).ok_or("usage: simple_copy URI >OUTPUT")?;
    let mut disk = Client::connect(&uri)?;
    let mut output = stdout().lock();
    let mut buffer = vec![0; 2 << 20];
    let mut offset = 0;

    while offset < disk.size() {
        let length = buffer.len().min((disk.size() - offset) as usize);
        disk.read(offset, &mut buffer[..length])?;
        output.write_all(&buffer[..length])?;
        offset += length as u64;
    }
    Ok(output.flush()?)
}
