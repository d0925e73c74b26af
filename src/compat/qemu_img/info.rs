//! `qemu-img info`.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use crate::{
    block::{Access, Error, ErrorKind},
    cli::{commands::runtime, failure::Failure},
    endpoint::{
        Endpoint, FormatKind, Layer, Layers, OpenDevice, OpenOptions, beside, open_device,
        printable,
    },
    format::{Details, RelatedFile, Role, qcow2, vmdk},
};

use super::{
    super::{
        getopt::{Argument, Flag},
        qemu::tree::{Tree, size_text},
    },
    command::{Command, Done, shown},
    looking::{Looking, Opt, opening, output, own},
    node::{Node, SECTOR, name_of, text},
    snapshot::table,
};

const HELP: &str = "\
Tells of an image.

Usage: qemu-img info [OPTIONS] FILE

  -b, --backing-chain      Tell of the images behind it, too, where BLOCKFERRY_ALLOW_BACKING allows it
  -f, --format=FMT         Format of FILE
      --image-opts         FILE is a description: driver=qcow2,file.filename=PATH
      --object OBJECT      tls-creds-x509,id=ID,dir=DIR,endpoint=client
      --output=human|json  Lines for people, or JSON
  -U, --force-share        Understood; images are never locked
  -h, --help               Show this text
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Chain,
}

const FLAGS: &[Flag<Opt<Own>>] = {
    use Argument::No;
    &[output(), own("backing-chain", Some(b'b'), No, Own::Chain)]
};

/// What is known of an image.
struct Image {
    name: String,
    format: &'static str,
    virtual_size: u64,
    details: Option<Details>,
    /// The files that it lies in, in the order in which they are told of.
    nodes: Vec<Node>,
    /// The name of the backing file, put behind the image's directory; `None` where that is not known.
    full_backing: Option<String>,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut looking = Looking::default();
    let mut chain = false;
    let operands = looking.read(FLAGS, words, HELP, |Own::Chain, _| {
        chain = true;
        Ok(())
    })?;
    let source = looking.source(&operands)?;
    let runtime = runtime()?;
    let images = runtime.block_on(look(&source, chain))?;
    drop(runtime);
    shown(&match (looking.json, chain) {
        (false, _) => {
            let texts: Vec<_> = images.iter().map(Image::lines).collect();
            texts.join("\n")
        }
        (true, true) => Tree::List(images.iter().map(Image::tree).collect()).json(),
        (true, false) => images.iter().map(|image| image.tree().json()).collect(),
    })
}

async fn look(source: &Endpoint, chain: bool) -> Result<Vec<Image>, Failure> {
    let options = opening();
    let first = look_at(source, &options).await?;
    let is_followed = first
        .details
        .as_ref()
        .is_some_and(|it| it.backing().is_some());
    if !chain || !is_followed {
        return Ok(vec![first]);
    }
    let opened = open_device(source, Access::ReadOnly, &options).await?;
    let layers = opened.connection.layers();
    let behind = layers.chain().skip(1);
    let behind = behind.map(|layer| Image::of_layer(layer, layers));
    let images = std::iter::once(first).chain(behind).collect();
    opened.connection.close().await?;
    Ok(images)
}

/// Looks at one image, and no other file than those that hold its extents.
async fn look_at(source: &Endpoint, options: &OpenOptions) -> Result<Image, Error> {
    let bytes = source.clone().interpreted(FormatKind::Raw);
    let OpenDevice { device, connection } = open_device(&bytes, Access::ReadOnly, options).await?;
    let named = |error: Error| error.on(source.name());
    let mut details = match source.format().kind {
        FormatKind::Image(format) => Some(format.details(&device).await.map_err(named)?),
        _ => None,
    };
    let own = name_of(source);
    let mut nodes = vec![Node::of(source, &*device)];
    if let Some(Details::Vmdk(vmdk)) = &details
        && vmdk.extents.iter().any(|extent| extent.file.is_some())
    {
        let (extents, opened) = extents_of(source, options).await?;
        nodes.splice(0..0, extents);
        // Those know more than the image that names them.
        details = opened.or(details);
    }
    let image = Image::new(&own, device.info().size, details, nodes);
    drop(device);
    connection.abandon().await;
    Ok(image)
}

/// The files of an image's extents, where they may be opened, and what is known of the image then.
async fn extents_of(
    source: &Endpoint,
    options: &OpenOptions,
) -> Result<(Vec<Node>, Option<Details>), Error> {
    let opened = match open_device(source, Access::ReadOnly, options).await {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotPermitted => return Ok((Vec::new(), None)),
        Err(error) => return Err(error),
    };
    let nodes = nodes_of_extents(opened.connection.layers(), 0);
    let details = opened.connection.details();
    opened.connection.close().await?;
    Ok((nodes, details))
}

fn nodes_of_extents(layers: &Layers, depth: usize) -> Vec<Node> {
    let extents = layers.others(depth, Role::Extent).enumerate();
    extents
        .map(|(number, layer)| Node::named(format!("extents.{number}"), &layer.path, &*layer.bytes))
        .collect()
}

impl Image {
    fn new(own: &Path, length: u64, details: Option<Details>, nodes: Vec<Node>) -> Self {
        let backing = details.as_ref().and_then(Details::backing);
        Self {
            name: text(own),
            format: details.as_ref().map_or("raw", |it| it.format().name()),
            virtual_size: match &details {
                Some(details) => details.virtual_size(),
                None => length.next_multiple_of(SECTOR),
            },
            full_backing: backing
                .filter(|_| nodes.iter().all(Node::is_file))
                .map(|file| text(&beside(own, &file.name))),
            details,
            nodes,
        }
    }

    fn of_layer(layer: &Layer, layers: &Layers) -> Self {
        let details = layer.image.as_ref().map(|image| image.details());
        let file = Node::named("file".to_owned(), &layer.path, &*layer.bytes);
        let mut nodes = nodes_of_extents(layers, layer.depth);
        nodes.push(file);
        Self::new(&layer.path, layer.bytes.info().size, details, nodes)
    }

    /// How much space its files take, where that is known of all.
    fn space(&self) -> Option<u64> {
        self.nodes.iter().map(|node| node.space).sum()
    }

    fn qcow2(&self) -> Option<&qcow2::Details> {
        self.details.as_ref()?.as_qcow2()
    }

    fn is_dirty(&self) -> bool {
        match &self.details {
            Some(Details::Qcow2(details)) => details.is_dirty,
            _ => false,
        }
    }

    /// What only its format knows of it.
    fn specific(&self) -> Option<Tree> {
        match self.details.as_ref()? {
            Details::Qcow2(details) => Some(of_qcow2(details)),
            Details::Vmdk(details) => Some(of_vmdk(details, &self.name)),
            _ => None,
        }
    }

    fn lines(&self) -> String {
        let mut lines = format!(
            "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
            printable(OsStr::new(&self.name)),
            self.format,
            size_text(self.virtual_size),
            self.virtual_size,
            self.space().map_or("unavailable".to_owned(), size_text)
        );
        if let Some(size) = self.cluster_size() {
            lines += &format!("cluster_size: {size}\n");
        }
        if self.is_dirty() {
            lines += "cleanly shut down: no\n";
        }
        if let Some(backing) = self.details.as_ref().and_then(Details::backing) {
            lines += &self.backing_lines(backing);
        }
        if let Some(details) = self.qcow2().filter(|it| !it.snapshots.is_empty()) {
            lines += &table(&details.snapshots);
        }
        if let Some(specific) = self.specific() {
            lines += "Format specific information:\n";
            lines += &specific.lines(1);
        }
        lines.extend(self.nodes.iter().map(Node::lines));
        lines
    }

    fn backing_lines(&self, backing: &RelatedFile) -> String {
        let name = String::from_utf8_lossy(&backing.name);
        let mut lines = format!("backing file: {}", printable(OsStr::new(&*name)));
        match &self.full_backing {
            None => lines += " (cannot determine actual path)",
            Some(full) if *full != name => {
                lines += &format!(" (actual path: {})", printable(OsStr::new(full)));
            }
            Some(_) => {}
        }
        lines.push('\n');
        if let Some(format) = &backing.format {
            let format = printable(OsStr::new(format));
            lines += &format!("backing file format: {format}\n");
        }
        lines
    }

    fn cluster_size(&self) -> Option<u64> {
        self.details.as_ref()?.cluster_size()
    }

    fn tree(&self) -> Tree {
        let backing = self.details.as_ref().and_then(Details::backing);
        let mut members = vec![(
            "children",
            Tree::List(self.nodes.iter().map(Node::tree).collect()),
        )];
        if let Some(format) = backing.and_then(|file| file.format.as_ref()) {
            members.push(("backing-filename-format", Tree::text(format)));
        }
        if let Some(details) = self.qcow2().filter(|it| !it.snapshots.is_empty()) {
            let snapshots = details.snapshots.iter().map(of_snapshot);
            members.push(("snapshots", Tree::List(snapshots.collect())));
        }
        members.push(("virtual-size", Tree::number(self.virtual_size)));
        members.push(("filename", Tree::text(&self.name)));
        if let Some(size) = self.cluster_size() {
            members.push(("cluster-size", Tree::number(size)));
        }
        members.push(("format", Tree::text(self.format)));
        if let Some(space) = self.space() {
            members.push(("actual-size", Tree::number(space)));
        }
        if let Some(specific) = self.specific() {
            let specific = vec![("type", Tree::text(self.format)), ("data", specific)];
            members.push(("format-specific", Tree::Map(specific)));
        }
        if let Some(full) = self.full_backing.as_ref().filter(|_| backing.is_some()) {
            members.push(("full-backing-filename", Tree::text(full)));
        }
        if let Some(backing) = backing {
            let name = String::from_utf8_lossy(&backing.name);
            members.push(("backing-filename", Tree::text(name)));
        }
        if self.details.is_some() || self.nodes.iter().all(Node::is_file) {
            members.push(("dirty-flag", Tree::Switch(self.is_dirty())));
        }
        Tree::Map(members)
    }
}

fn of_qcow2(details: &qcow2::Details) -> Tree {
    let bits = Tree::number(details.refcount_bits);
    let mut members = vec![
        ("compat", Tree::text(details.compat())),
        ("compression-type", Tree::text(details.compression.name())),
    ];
    if details.version < 3 {
        members.push(("refcount-bits", bits));
        return Tree::Map(members);
    }
    members.push(("lazy-refcounts", Tree::Switch(details.lazy_refcounts)));
    if !details.bitmaps.is_empty() {
        let bitmaps = details.bitmaps.iter().map(of_bitmap).collect();
        members.push(("bitmaps", Tree::List(bitmaps)));
    }
    members.push(("refcount-bits", bits));
    if let Some(file) = &details.data_file {
        let name = String::from_utf8_lossy(&file.name);
        members.push(("data-file", Tree::text(name)));
        members.push(("data-file-raw", Tree::Switch(details.data_file_raw)));
    }
    members.push(("corrupt", Tree::Switch(details.is_corrupt)));
    members.push(("extended-l2", Tree::Switch(details.extended_l2)));
    Tree::Map(members)
}

fn of_bitmap(bitmap: &qcow2::BitmapDetails) -> Tree {
    let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
    let flags = flags.into_iter().filter(|flag| flag.1);
    Tree::Map(vec![
        (
            "flags",
            Tree::List(flags.map(|flag| Tree::text(flag.0)).collect()),
        ),
        ("name", Tree::text(&bitmap.name)),
        ("granularity", Tree::number(bitmap.granularity)),
    ])
}

fn of_snapshot(snapshot: &qcow2::Snapshot) -> Tree {
    let mut members = Vec::new();
    if let Some(count) = snapshot.instructions {
        members.push(("icount", Tree::number(count)));
    }
    members.extend([
        (
            "vm-clock-nsec",
            Tree::number(snapshot.guest_clock.subsec_nanos()),
        ),
        ("name", Tree::text(&snapshot.name)),
        ("date-sec", Tree::number(snapshot.date.as_secs())),
        ("date-nsec", Tree::number(snapshot.date.subsec_nanos())),
        ("vm-clock-sec", Tree::number(snapshot.guest_clock.as_secs())),
        ("id", Tree::text(&snapshot.id)),
        ("vm-state-size", Tree::number(snapshot.state_size)),
    ]);
    Tree::Map(members)
}

fn of_vmdk(details: &vmdk::Details, own: &str) -> Tree {
    let extent = |extent: &vmdk::ExtentDetails| {
        let mut members = Vec::new();
        if extent.is_compressed {
            members.push(("compressed", Tree::Switch(true)));
        }
        members.push(("virtual-size", Tree::number(extent.virtual_size)));
        let name = match &extent.file {
            Some(file) => text(&beside(Path::new(own), &file.name)),
            None => own.to_owned(),
        };
        members.push(("filename", Tree::text(name)));
        if let Some(size) = extent.cluster_size {
            members.push(("cluster-size", Tree::number(size)));
        }
        // QEMU looks at the descriptor's word only where the extent is a file of its own.
        let kind = match &extent.file {
            Some(_) => extent.kind.clone(),
            None => String::new(),
        };
        members.push(("format", Tree::text(kind)));
        Tree::Map(members)
    };
    Tree::Map(vec![
        ("cid", Tree::number(details.cid)),
        ("parent-cid", Tree::number(details.parent_cid)),
        ("create-type", Tree::text(&details.create_type)),
        (
            "extents",
            Tree::List(details.extents.iter().map(extent).collect()),
        ),
    ])
}
