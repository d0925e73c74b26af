//! The command line: arguments in, exit code out. The only part of the library that prints.
//!
//! | file | what it does |
//! |---|---|
//! | `args` | the one definition of every flag: it feeds parsing, help, man pages and completions |
//! | `options` | raw flags become typed options; contradictions end here |
//! | `run`, `usage` | from an argument list to an exit code; what is told of one that is wrong |
//! | `checkpoint` | the file that says what is done of a copy |
//! | `commands/` | one file per command |
//! | `drawing/` | disks and numbers over time as pictures |
//! | `endpoint_help` | what the help says of endpoints, from their table |
//! | `page/` | the page of `copy --report` |
//! | `preflight` | whether there is room, before a copy begins |
//! | `progress`, `percent`, `fraction`, `report` | what a copy shows while it runs and when it is done |
//! | `rate` | how fast a copy may be, as a file says it while it runs |
//! | `failure` | errors become messages, hints and exit codes |
//! | `hints` | what a person can do about a failure |
//! | `manual` | the manual pages |
//! | `output` | standard output and error, where a reader may go away |
//! | `signals` | the requests to end |
//! | `significant` | numbers as C prints them |
//! | `style` | colours of a terminal |
//! | `understood` | a command line that is read and not carried out |

pub(crate) mod args;
pub(crate) mod checkpoint;
pub(crate) mod commands;
mod drawing;
mod endpoint_help;
pub(crate) mod failure;
pub(crate) mod fraction;
mod hints;
mod manual;
pub(crate) mod options;
pub(crate) mod output;
mod page;
pub(crate) mod percent;
mod preflight;
pub(crate) mod progress;
pub(crate) mod rate;
pub(crate) mod report;
mod run;
pub(crate) mod signals;
pub(crate) mod significant;
pub(crate) mod style;
mod understood;
mod usage;

pub use args::command;
pub use run::main;
pub use understood::understood;
