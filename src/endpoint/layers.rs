//! The files that an image is made of, open: itself, what is behind it, and where their data lies.

use std::{path::PathBuf, sync::Arc};

use crate::{
    block::BlockDevice,
    format::{Image, Role},
};

/// One file of an image, or of one behind it.
#[derive(Clone)]
pub struct Layer {
    /// What it is to the image that names it; `None` of the first one, which the user has named.
    pub role: Option<Role>,
    /// Which image of the chain it is, from 0 on, or belongs to.
    pub depth: usize,
    /// Where it is found: a name that an image gives is put behind that image's directory.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Arc<dyn BlockDevice>,
    /// The image in it; `None` where its bytes are what is wanted.
    pub image: Option<Arc<dyn Image>>,
}

/// The files of an image, in no order but that the first one is what the user has named.
#[derive(Clone, Default)]
pub struct Layers(pub(super) Vec<Layer>);

impl Layers {
    /// The images of the chain, the first one first. There are none of what is no image.
    pub fn chain(&self) -> impl Iterator<Item = &Layer> {
        let at = |depth| {
            let is_there = move |layer: &&Layer| {
                layer.depth == depth && matches!(layer.role, None | Some(Role::Backing))
            };
            self.0.iter().find(is_there)
        };
        (0..self.0.len()).map_while(at)
    }

    /// The files of that role of the image with this number in the chain, in the order in which it named them.
    pub fn others(&self, depth: usize, role: Role) -> impl Iterator<Item = &Layer> {
        let is_its = move |layer: &&Layer| layer.depth == depth && layer.role == Some(role);
        self.0.iter().filter(is_its)
    }
}
