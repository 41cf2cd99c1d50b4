//! Compiled networks that lines share: lines whose models use the same network at the same size have one copy of it, and each
//! line has its own few requests, so that a slow line cannot take the others' turns.

use crate::detect::backbone::{Backbone, Options};
use crate::error::Result;
use crate::line::{self, Network};
use crate::model::Model;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The networks that are in use. Kept as long as a line holds one.
#[derive(Default)]
pub(super) struct Networks(Mutex<Vec<(Options, Weak<Mutex<Backbone>>)>>);

/// A line's hold on a network.
pub(super) struct Held(Arc<Mutex<Backbone>>);

impl Networks {
    /// The network for these options, compiled if no line has it; checked against the model either way.
    pub fn get(&self, model: &Model, options: &Options) -> Result<Held> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, backbone)| backbone.strong_count() > 0);
        let known = all.iter().find(|(o, _)| o == options).and_then(|(_, backbone)| backbone.upgrade());
        let backbone = match known {
            Some(backbone) => backbone,
            None => {
                let backbone = Arc::new(Mutex::new(Backbone::compile(options)?));
                all.push((options.clone(), Arc::downgrade(&backbone)));
                backbone
            }
        };
        drop(all);
        line::check_parity(model, &mut backbone.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(Held(backbone))
    }
}

impl Held {
    /// Requests of the line's own: what the device wants in flight, shared out over `lines`, at least two so that one is filled
    /// while the other runs; or as many as the line asks for.
    pub fn share(&self, lines: usize, wanted: Option<usize>) -> Result<Network> {
        let mut backbone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match wanted {
            Some(wanted) => Network::of(&mut backbone, wanted),
            None => Network::share(&mut backbone, lines),
        }
    }
}
