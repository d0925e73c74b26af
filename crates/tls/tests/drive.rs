//! Two sessions, each driven over a wire that ends at the other one.

mod support;

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    rc::Rc,
    task::Poll,
};

use blockferry_tls::{Arrival, Error, Session, Verification, Wire};

use crate::support::Realm;

/// One way of a wire.
#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    has_ended: bool,
}

/// One end of a wire.
struct End {
    incoming: Rc<RefCell<Way>>,
    outgoing: Rc<RefCell<Way>>,
    /// How many bytes it takes at a time, and how many may be on their way.
    portion: usize,
    room: usize,
}

impl End {
    fn pair(portion: usize, room: usize) -> (Self, Self) {
        let (there, back) = (Rc::default(), Rc::default());
        let end = |incoming: &Rc<RefCell<Way>>, outgoing: &Rc<RefCell<Way>>| Self {
            incoming: Rc::clone(incoming),
            outgoing: Rc::clone(outgoing),
            portion,
            room,
        };
        (end(&back, &there), end(&there, &back))
    }
}

impl Wire for End {
    fn poll_receive(&mut self, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut way = self.incoming.borrow_mut();
        if way.bytes.is_empty() && !way.has_ended {
            return Poll::Pending;
        }
        let count = room.len().min(self.portion).min(way.bytes.len());
        for (place, byte) in room.iter_mut().zip(way.bytes.drain(..count)) {
            *place = byte;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_send(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut way = self.outgoing.borrow_mut();
        if way.has_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let free = self.room.saturating_sub(way.bytes.len());
        let count = bytes.len().min(self.portion).min(free);
        way.bytes.extend(&bytes[..count]);
        match count {
            0 => Poll::Pending,
            count => Poll::Ready(Ok(count)),
        }
    }
}

/// A client and a server that trust each other, and their ends of a wire.
fn joined(portion: usize, room: usize) -> ((Session, End), (Session, End)) {
    let realm = Realm::new("drive");
    let server = realm.server(Verification::Off).session();
    let (mut client, mut server) = (realm.client(), server.expect("good certificates"));
    let (mut near, mut far) = End::pair(portion, room);
    loop {
        let both = (
            client.poll_handshake(&mut near),
            server.poll_handshake(&mut far),
        );
        match both {
            (Poll::Ready(one), Poll::Ready(other)) => {
                one.expect("it trusts the server");
                other.expect("anybody may come");
                break;
            }
            (one, other) => {
                assert!(!matches!(one, Poll::Ready(Err(_))), "{one:?}");
                assert!(!matches!(other, Poll::Ready(Err(_))), "{other:?}");
            }
        }
    }
    ((client, near), (server, far))
}

#[test]
fn bytes_come_through_whatever_the_wire_takes_and_who_waits_has_no_memory() {
    let data: Vec<u8> = (0..500_000_u32).map(|index| (index % 251) as u8).collect();
    for (portion, room) in [(usize::MAX, usize::MAX), (1000, 5000), (17, 17)] {
        let ((mut client, mut near), (mut server, mut far)) = joined(portion, room);
        let length = data.len() / if portion < 100 { 10 } else { 1 };
        let (mut sent, mut arrived) = (0, Vec::<u8>::new());
        while arrived.len() < length {
            let flushed = client.poll_send(&mut near);
            if sent < length && flushed.is_ready() {
                let slices = [IoSlice::new(&data[..length])];
                sent += client.write(&slices, sent).expect("it may");
            }
            let mut place = [0; 3000];
            let mut slices = [IoSliceMut::new(&mut place)];
            if let Poll::Ready(came) = server.poll_receive(&mut far, &mut slices) {
                let Arrival::Bytes(count) = came.expect("whole") else {
                    panic!("it has ended after {} bytes", arrived.len());
                };
                arrived.extend(&place[..count]);
            }
        }
        assert!(arrived == data[..length], "{portion}");
        let mut place = [0; 10];
        let nothing = server.poll_receive(&mut far, &mut [IoSliceMut::new(&mut place)]);
        assert!(nothing.is_pending());
        assert!(server.memory() <= 1024, "{}", server.memory());
        assert!(client.poll_send(&mut near).is_ready());
        assert!(client.memory() <= 1024, "{}", client.memory());
    }
}

#[test]
fn an_end_that_was_said_is_told_from_one_that_was_not() {
    for says_so in [true, false] {
        let ((mut client, mut near), (mut server, mut far)) = joined(100, usize::MAX);
        client.write(&[IoSlice::new(b"words")], 0).expect("it may");
        if says_so {
            client.close();
        }
        assert!(client.poll_send(&mut near).is_ready());
        near.outgoing.borrow_mut().has_ended = true;
        let mut place = [0; 10];
        let mut receive = || {
            let came = server.poll_receive(&mut far, &mut [IoSliceMut::new(&mut place)]);
            match came {
                Poll::Ready(came) => came.expect("no failure"),
                Poll::Pending => panic!("nothing more comes"),
            }
        };
        assert_eq!(receive(), Arrival::Bytes(5));
        let end = match says_so {
            true => Arrival::Closed,
            false => Arrival::Cut,
        };
        assert_eq!((receive(), receive()), (end, end));
    }
}

#[test]
fn who_hangs_up_in_the_handshake_is_told_by_how_far_it_came() {
    let realm = Realm::new("drive");
    for word in [&b""[..], &[0x16, 3, 1, 2, 0]] {
        let (near, mut far) = End::pair(100, usize::MAX);
        near.outgoing.borrow_mut().bytes.extend(word);
        near.outgoing.borrow_mut().has_ended = true;
        let mut server = realm.server(Verification::Off).session().expect("good");
        let Poll::Ready(Err(error)) = server.poll_handshake(&mut far) else {
            panic!("nobody was there");
        };
        match word.is_empty() {
            true => assert!(matches!(error, Error::NeverBegan), "{error:?}"),
            false => assert!(matches!(error, Error::HungUp), "{error:?}"),
        }
    }
    let (mut near, far) = End::pair(100, usize::MAX);
    far.outgoing.borrow_mut().has_ended = true;
    let Poll::Ready(Err(error)) = realm.client().poll_handshake(&mut near) else {
        panic!("nobody was there");
    };
    assert!(matches!(error, Error::Cut), "{error:?}");
}
