//! Facts as nbdinfo's text.

use std::fmt::{self, Display, Write};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::inspect::{
    Abilities, Bitmap, BlockSizes, Details, Export, Facts, Image, Server, Specific, State,
};

use super::{
    super::super::{
        args::Size,
        style::{Colour, Paint},
    },
    json::Escaped,
};

/// The facts, a line each.
pub(crate) fn text(facts: &Facts, colour: Colour) -> String {
    let mut text = Text {
        text: String::new(),
        colour,
    };
    if let Some(server) = &facts.server {
        text.server(server);
    }
    for export in &facts.exports {
        text.export(export);
    }
    text.text
}

/// A snapshot on a line.
pub(crate) fn state(state: &State) -> String {
    let (id, name) = (Printable(&state.id), Printable(&state.name));
    let (size, vm) = (Size(state.virtual_size), Size(state.vm_state_size));
    let date = Date(state.date_sec);
    format!("{id} \"{name}\", {date}, {size}, VM state {vm}")
}

/// A bitmap on a line.
pub(crate) fn bitmap(bitmap: &Bitmap) -> String {
    let (name, granularity) = (Printable(&bitmap.name), Size(bitmap.granularity));
    let flags = bitmap.flags.iter().map(|flag| format!(", {flag}"));
    let flags: String = flags.collect();
    format!("\"{name}\", granularity {granularity}{flags}")
}

/// The text while it grows. Writing to a string cannot fail.
struct Text {
    text: String,
    colour: Colour,
}

impl Text {
    fn server(&mut self, server: &Server) {
        let tls = if server.tls { "with" } else { "without" };
        let packets = match (server.extended, server.structured) {
            (true, _) => "extended",
            (false, true) => "structured",
            (false, false) => "simple",
        };
        let protocol = server.protocol;
        self.paint(Paint::Grey);
        self.text += &format!("protocol: {protocol} {tls} TLS, using {packets} packets\n");
        self.paint(Paint::Normal);
    }

    fn export(&mut self, export: &Export) {
        self.paint(Paint::BoldBlack);
        self.text += &format!("export=\"{}\":\n", Escaped(&export.name));
        if let Some(description) = &export.description {
            self.line("description", Printable(description));
        }
        if let Some(error) = &export.error {
            self.line("error", Printable(error));
        }
        if let Some(details) = &export.details {
            let size = WithUnit(details.size);
            self.line("export-size", size);
        }
        if let Some(size) = export.disk_size {
            self.line("disk-size", WithUnit(size));
        }
        if let Some(content) = &export.content {
            self.line("content", Printable(content));
        }
        if let Some(uri) = &export.uri {
            self.line("uri", uri);
        }
        self.paint(Paint::Normal);
        if let Some(details) = &export.details {
            self.details(details);
        }
        if let Some(image) = &export.format {
            self.image(image);
        }
    }

    fn image(&mut self, image: &Image) {
        self.line("format", image.name);
        if let Some(size) = image.cluster_size {
            self.fact("cluster-size", WithUnit(size));
        }
        self.specific(&image.specific);
        if let Some(name) = &image.backing_filename {
            self.fact("backing-filename", Printable(name));
        }
        if let Some(format) = &image.backing_filename_format {
            self.fact("backing-filename-format", Printable(format));
        }
        for behind in &image.chain {
            let (name, size) = (Printable(&behind.filename), Size(behind.virtual_size));
            let format = behind.format;
            self.fact("behind", format_args!("\"{name}\", {format}, {size}"));
        }
        for one in &image.snapshots {
            self.fact("snapshot", state(one));
        }
        for one in &image.bitmaps {
            self.fact("bitmap", bitmap(one));
        }
    }

    fn specific(&mut self, specific: &Specific) {
        match specific {
            Specific::Qcow2(qcow2) => {
                self.fact("compat", qcow2.compat);
                self.fact("refcount-bits", qcow2.refcount_bits);
                self.fact("compression-type", qcow2.compression_type);
                let marks = [
                    ("lazy-refcounts", qcow2.lazy_refcounts),
                    ("extended-l2", qcow2.extended_l2),
                    ("dirty-flag", qcow2.dirty_flag),
                    ("corrupt", qcow2.corrupt),
                ];
                for (key, is_set) in marks {
                    self.fact(key, is_set);
                }
                if let (Some(name), Some(raw)) = (&qcow2.data_file, qcow2.data_file_raw) {
                    self.fact("data-file", Printable(name));
                    self.fact("data-file-raw", raw);
                }
            }
            Specific::Vmdk(vmdk) => {
                self.fact("create-type", Printable(&vmdk.create_type));
                self.fact("cid", format_args!("{:08x}", vmdk.cid));
                self.fact("parent-cid", format_args!("{:08x}", vmdk.parent_cid));
                for extent in &vmdk.extents {
                    let (kind, size) = (Printable(&extent.kind), Size(extent.virtual_size));
                    let packed = if extent.compressed {
                        ", compressed"
                    } else {
                        ""
                    };
                    let name = extent.filename.as_deref().unwrap_or_default();
                    let name = match name {
                        "" => String::new(),
                        name => format!(", \"{}\"", Printable(name)),
                    };
                    self.fact("extent", format_args!("{kind}, {size}{packed}{name}"));
                }
            }
            Specific::Vpc(vpc) => {
                self.fact("kind", vpc.kind);
                self.fact("creator", Printable(&vpc.creator));
                self.fact("uuid", &vpc.uuid);
            }
            Specific::Vhdx(vhdx) => {
                self.fact("kind", vhdx.kind);
                self.fact("logical-sector-size", vhdx.logical_sector_size);
                self.fact("physical-sector-size", vhdx.physical_sector_size);
                self.fact("dirty-flag", vhdx.dirty_flag);
                self.fact("data-uuid", &vhdx.data_uuid);
            }
            Specific::Vdi(vdi) => {
                self.fact("kind", vdi.kind);
                self.fact("uuid", &vdi.uuid);
            }
            Specific::Other {} => {}
        }
    }

    /// A line about the image.
    fn fact(&mut self, key: &str, value: impl Display) {
        let _ = writeln!(self.text, "\t\t{key}: {value}");
    }

    fn details(&mut self, details: &Details) {
        self.paint(Paint::Grey);
        if !details.contexts.is_empty() {
            self.text.push_str("\tcontexts:\n");
        }
        for context in &details.contexts {
            self.text += &format!("\t\t{}\n", Printable(context));
        }
        self.abilities(&details.abilities);
        if let Some(sizes) = &details.block_sizes {
            self.block_sizes(sizes);
        }
    }

    fn abilities(&mut self, abilities: &Abilities) {
        self.line("is_rotational", abilities.is_rotational);
        self.paint(Paint::Normal);
        self.line("is_read_only", abilities.is_read_only);
        let table = [
            (
                "can_block_status_payload",
                abilities.can_block_status_payload,
            ),
            ("can_cache", abilities.can_cache),
            ("can_df", abilities.can_df),
            ("can_fast_zero", abilities.can_fast_zero),
            ("can_flush", abilities.can_flush),
            ("can_fua", abilities.can_fua),
            ("can_multi_conn", abilities.can_multi_conn),
            ("can_trim", abilities.can_trim),
            ("can_zero", abilities.can_zero),
        ];
        for (key, can) in table {
            self.paint(if can { Paint::Green } else { Paint::Red });
            self.line(key, can);
            self.paint(Paint::Normal);
        }
    }

    fn block_sizes(&mut self, sizes: &BlockSizes) {
        let table = [
            ("block_size_minimum", sizes.minimum),
            ("block_size_preferred", sizes.preferred),
            ("block_size_maximum", sizes.maximum),
        ];
        for (key, size) in table {
            self.line(key, WithUnit(size.into()));
        }
    }

    fn line(&mut self, key: &str, value: impl Display) {
        let _ = writeln!(self.text, "\t{key}: {value}");
    }

    fn paint(&mut self, paint: Paint) {
        let _ = write!(self.text, "{}", self.colour.paint(paint));
    }
}

/// A number of bytes, and the same in a larger unit where one fits exactly.
struct WithUnit(u64);

impl Display for WithUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, short) = (self.0.to_string(), Size(self.0).to_string());
        match bytes == short {
            true => f.write_str(&bytes),
            false => write!(f, "{bytes} ({short})"),
        }
    }
}

/// A moment, in seconds since 1970.
struct Date(u64);

impl Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = i64::try_from(self.0).ok();
        let moment = moment.and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok());
        match moment.and_then(|moment| moment.format(&Rfc3339).ok()) {
            Some(text) => f.write_str(&text),
            None => write!(f, "{} seconds after 1970", self.0),
        }
    }
}

/// What a server or an image said, without what steers a terminal or ends the line.
struct Printable<'a>(&'a str);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c.is_control() {
                true => write!(f, "\\u{:04x}", u32::from(c))?,
                false => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        inspect::{Behind, Bitmap, Qcow2, State, facts::tests::negotiated},
        proto::{BlockSizes as Sizes, NbdUri, ReplyMode},
    };

    /// As of libnbd 1.24: with can_block_status_payload, and units behind the block sizes.
    const PLAIN: &str = "\
protocol: newstyle-fixed without TLS, using extended packets
export=\"x\":
\tdescription: a disk
\texport-size: 1048576 (1M)
\tcontent: data
\turi: nbd://host:10809/x
\tcontexts:
\t\tbase:allocation
\tis_rotational: false
\tis_read_only: true
\tcan_block_status_payload: true
\tcan_cache: false
\tcan_df: false
\tcan_fast_zero: false
\tcan_flush: true
\tcan_fua: false
\tcan_multi_conn: false
\tcan_trim: false
\tcan_zero: false
\tblock_size_minimum: 1
\tblock_size_preferred: 4096 (4K)
\tblock_size_maximum: 33554432 (32M)
";

    fn facts() -> Facts {
        let uri: NbdUri = "nbd://host/x".parse().expect("a URI");
        let mut negotiated = negotiated("x");
        negotiated.mode = ReplyMode::Extended;
        negotiated.export.description = Some("a disk".to_owned());
        negotiated.export.block_sizes = Sizes::new(1, 4096, 32 << 20).ok();
        let mut facts = Facts::of_export(&negotiated, "x", Some(&uri));
        facts.exports[0].content = Some("data".to_owned());
        facts
    }

    #[test]
    fn the_text_is_nbdinfos() {
        assert_eq!(text(&facts(), Colour::Never), PLAIN);
    }

    #[test]
    fn colours_are_added_and_nothing_else() {
        let coloured = text(&facts(), Colour::Always);
        assert!(coloured.starts_with("\x1b[22;90mprotocol: "), "{coloured}");
        assert!(coloured.contains("\n\x1b[0m\x1b[1;30mexport="));
        assert!(coloured.contains("\n\x1b[0m\x1b[22;90m\tcontexts:\n"));
        assert!(coloured.contains("\x1b[22;32m\tcan_flush: true\n\x1b[0m"));
        assert!(coloured.contains("\x1b[22;31m\tcan_fua: false\n\x1b[0m"));
        let mut plain = String::new();
        for (index, part) in coloured.split('\x1b').enumerate() {
            plain += match index {
                0 => part,
                _ => part.split_once('m').expect("the end of a colour").1,
            };
        }
        assert_eq!(plain, PLAIN);
    }

    #[test]
    fn what_a_server_says_cannot_steer_the_terminal() {
        let text = text(
            &Facts::of_export(&negotiated("\u{9b}x\ny\"z"), "", None),
            Colour::Never,
        );
        assert!(
            text.contains("\n\tdescription: a \\u001b[31mred\\u001b[0m disk\n"),
            "{text}"
        );
        assert!(!text.contains(['\u{1b}', '\u{9b}']), "{text}");
    }

    #[test]
    fn what_an_image_says_is_shown_below_its_format() {
        let mut facts = facts();
        facts.exports[0].format = Some(Image {
            name: "qcow2",
            virtual_size: 1 << 30,
            cluster_size: Some(65536),
            specific: Specific::Qcow2(Qcow2 {
                compat: "1.1",
                refcount_bits: 16,
                compression_type: "zstd",
                lazy_refcounts: false,
                extended_l2: true,
                corrupt: false,
                dirty_flag: true,
                data_file: Some("data".to_owned()),
                data_file_raw: Some(true),
            }),
            backing_filename: Some("ba\nse".to_owned()),
            backing_filename_format: Some("raw".to_owned()),
            chain: vec![Behind {
                filename: "d/ba\nse".to_owned(),
                format: "raw",
                virtual_size: 1 << 20,
            }],
            snapshots: vec![State {
                id: "1".to_owned(),
                name: "a\u{1b}b".to_owned(),
                virtual_size: 1 << 20,
                vm_state_size: 0,
                date_sec: 1_700_000_000,
                date_nsec: 0,
                vm_clock_sec: 0,
                vm_clock_nsec: 0,
                icount: None,
            }],
            bitmaps: vec![Bitmap {
                name: "b0".to_owned(),
                granularity: 65536,
                flags: vec!["in-use", "auto"],
            }],
        });
        let expected = "\
\tformat: qcow2
\t\tcluster-size: 65536 (64K)
\t\tcompat: 1.1
\t\trefcount-bits: 16
\t\tcompression-type: zstd
\t\tlazy-refcounts: false
\t\textended-l2: true
\t\tdirty-flag: true
\t\tcorrupt: false
\t\tdata-file: data
\t\tdata-file-raw: true
\t\tbacking-filename: ba\\u000ase
\t\tbacking-filename-format: raw
\t\tbehind: \"d/ba\\u000ase\", raw, 1M
\t\tsnapshot: 1 \"a\\u001bb\", 2023-11-14T22:13:20Z, 1M, VM state 0
\t\tbitmap: \"b0\", granularity 64K, in-use, auto
";
        let shown = text(&facts, Colour::Never);
        assert!(shown.ends_with(expected), "{shown}");
    }

    #[test]
    fn an_export_that_cannot_be_asked_is_shown_with_the_reason() {
        let mut facts = facts();
        facts.exports[0].details = None;
        facts.exports[0].error = Some("gone".to_owned());
        assert!(text(&facts, Colour::Never).contains("\n\terror: gone\n"));
    }
}
