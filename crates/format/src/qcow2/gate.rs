//! Who is looking at clusters right now: a cluster that is freed is not used again before everyone has gone who may
//! have found it under its old name.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Counts those inside, in two generations. Entering and leaving take no lock and never wait.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    generation: AtomicUsize,
    inside: [AtomicUsize; 2],
}

/// Someone inside, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    generation: usize,
}

impl Gate {
    /// Enters, before a table is looked at.
    pub(crate) fn enter(&self) -> Pass<'_> {
        loop {
            let generation = self.generation.load(SeqCst);
            self.inside[generation % 2].fetch_add(1, SeqCst);
            let pass = Pass {
                gate: self,
                generation,
            };
            // Otherwise the generation may have been found empty just before.
            if self.generation.load(SeqCst) == generation {
                return pass;
            }
        }
    }

    /// Begins a new generation where the last but one has gone. Once the number is 2 above what it was before a table
    /// was changed, nobody is inside who saw it as it was. Called by one at a time.
    pub(crate) fn advance(&self) -> usize {
        let generation = self.generation.load(SeqCst);
        if self.inside[(generation + 1) % 2].load(SeqCst) > 0 {
            return generation;
        }
        self.generation.store(generation + 1, SeqCst);
        generation + 1
    }

    /// The generation of those who enter now.
    pub(crate) fn generation(&self) -> usize {
        self.generation.load(SeqCst)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.inside[self.generation % 2].fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_passes_when_all_of_it_have_gone() {
        let gate = Gate::default();
        let early = gate.enter();
        let before = gate.generation();
        assert_eq!(gate.advance(), before + 1);
        let late = gate.enter();
        assert_eq!(gate.advance(), before + 1, "the early one is inside");
        drop(early);
        assert_eq!(gate.advance(), before + 2, "only the late one is");
        assert_eq!(gate.advance(), before + 2);
        drop(late);
        assert_eq!(gate.advance(), before + 3);
    }
}
