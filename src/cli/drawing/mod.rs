//! What is drawn, in one place: a disk as cells, on a terminal and in SVG, and numbers over time as charts.
//!
//! Nothing is told by colour alone: kinds have characters on a terminal and textures in SVG, lines have dashes.
//!
//! | file | what it does |
//! |---|---|
//! | `palette` | the colours, which the colour-blind tell apart |
//! | `cells` | an image in equal parts, each with what is in it |
//! | `terminal` | those as characters |
//! | `disk` | those in SVG |
//! | `chart` | lines and areas over time, drawn by plotters |
//! | `axis` | what is written beside them |
//! | `escaped` | text as XML and HTML have it |

pub(crate) mod axis;
pub(crate) mod cells;
pub(crate) mod chart;
pub(crate) mod disk;
pub(crate) mod escaped;
pub(crate) mod palette;
pub(crate) mod terminal;
