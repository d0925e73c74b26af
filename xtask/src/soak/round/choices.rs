//! Which source and which destination a round has.

use super::super::{
    images::{Form, Image},
    random::Random,
    residents::Resident,
    server::{Kind, Trouble},
};

/// Where the bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A generated image, or the file where there is none.
    Generated,
    File(Form),
    /// Standard input.
    Input,
    /// A server of this round, on a socket.
    Served(Kind, Form, Trouble),
    /// A server that the copy starts itself.
    Child(Kind, Form),
    Resident(Resident, Form),
}

/// Where they go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    NewFile,
    /// A file that has something else in it.
    OldFile,
    NewQcow2 {
        compressed: bool,
    },
    /// An export of a server of this round.
    Served(Kind, Form),
    Resident(Resident, Form),
    /// Another copy, through a pipe.
    Pipe,
}

impl Source {
    pub(super) fn choose(random: &mut Random, image: &Image) -> Self {
        let form = |random: &mut Random, kind: Kind| match image.is_odd() || kind == Kind::Nbdkit {
            true => Form::Raw,
            // QEMU opens backing files, ours only those that it may: both are good.
            false => *random.pick(&Form::ALL),
        };
        let kind = |random: &mut Random| match image.is_odd() {
            true => *random.pick(&[Kind::Ours, Kind::Nbdkit]),
            false => *random.pick(&Kind::ALL),
        };
        match random.below(10) {
            0 => Source::Generated,
            1 | 2 => Source::File(form(random, Kind::Ours)),
            3 => Source::Input,
            4 => {
                let kind = kind(random);
                Source::Child(kind, form(random, kind))
            }
            5 | 6 => {
                let resident = *random.pick(&Resident::ALL);
                let forms = [Form::Raw, Form::Qcow2, Form::Zstd];
                match image.is_odd() || resident == Resident::Proxy {
                    true => Source::Resident(resident, Form::Raw),
                    false => Source::Resident(resident, *random.pick(&forms)),
                }
            }
            _ => {
                let kind = kind(random);
                let trouble = match random.below(6) {
                    0 if kind != Kind::Qemu => Trouble::Errors,
                    1 if kind != Kind::Qemu => Trouble::Delay,
                    _ => Trouble::None,
                };
                Source::Served(kind, form(random, kind), trouble)
            }
        }
    }
}

impl Destination {
    pub(super) fn choose(random: &mut Random, image: &Image) -> Self {
        let odd = image.is_odd();
        match random.below(11) {
            0 | 1 => Destination::NewFile,
            2 => Destination::OldFile,
            3 => Destination::NewQcow2 { compressed: false },
            4 => Destination::NewQcow2 { compressed: true },
            5 | 6 => {
                let residents = match odd {
                    true => &[Resident::Server, Resident::Relay][..],
                    false => &Resident::ALL[..],
                };
                let resident = *random.pick(residents);
                match odd || resident == Resident::Proxy || random_half(random) {
                    true => Destination::Resident(resident, Form::Raw),
                    false => Destination::Resident(resident, Form::Qcow2),
                }
            }
            7 => Destination::Pipe,
            _ => {
                let kind = match odd {
                    true => *random.pick(&[Kind::Ours, Kind::Nbdkit]),
                    false => *random.pick(&Kind::ALL),
                };
                match odd || kind == Kind::Nbdkit || random_half(random) {
                    true => Destination::Served(kind, Form::Raw),
                    false => Destination::Served(kind, Form::Qcow2),
                }
            }
        }
    }
}

/// Heads or tails.
pub(super) fn random_half(random: &mut Random) -> bool {
    random.percent(50)
}
