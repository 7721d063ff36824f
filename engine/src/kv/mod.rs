//! Owns the K/V blocks as numbers: who holds which, which are kept for later, which are free; and the slots of state
//! that go with them. Knows no device and no values; block 0 is never lent.

mod pool;
mod prefix;
mod slots;
mod table;

pub use table::BlockTable;

use pool::BlockPool;
use prefix::PrefixCache;
use slots::StateSlots;

use crate::metrics::BlockCounts;

/// All blocks of one device. Every block but 0 is free, held by at least one table, or cached (held by none, kept for
/// its content).
pub struct KvBlocks {
    pool: BlockPool,
    prefix: PrefixCache,
    states: StateSlots,
    block_tokens: usize,
    caching: bool,
}

impl KvBlocks {
    /// `blocks` counts block 0.
    pub fn new(blocks: usize, block_tokens: usize, caching: bool) -> Self {
        let (pool, prefix) = (BlockPool::new(blocks), PrefixCache::new(blocks));
        Self { pool, prefix, states: StateSlots::new(0), block_tokens, caching }
    }

    /// As [`Self::new`] for a model that keeps a state: every table that has blocks has one of `slots` slots, which
    /// count slot 0. Nothing is cached: a computed block tells nothing of the state after it.
    pub fn with_states(blocks: usize, block_tokens: usize, slots: usize) -> Self {
        Self { states: StateSlots::new(slots), ..Self::new(blocks, block_tokens, false) }
    }

    /// True when sequences have a state beside their blocks.
    pub fn keeps_state(&self) -> bool {
        self.states.are_needed()
    }

    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that `tokens` take.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Blocks that can be had without taking any from a table.
    pub fn available(&self) -> usize {
        self.pool.free() + self.prefix.idle()
    }

    pub fn counts(&self) -> BlockCounts {
        let (total, free, cached) = (self.pool.total(), self.pool.free(), self.prefix.idle());
        BlockCounts { total, free, held: self.pool.held(), cached }
    }

    /// A table of the longest cached beginning of `tokens`, which it now holds. Never covers the last token: something
    /// must be computed to continue from.
    pub fn find(&mut self, salt: Option<&str>, tokens: &[u32]) -> BlockTable {
        let mut table = BlockTable::default();
        if !self.caching {
            return table;
        }
        let mut parent = 0;
        for chunk in tokens[..tokens.len().saturating_sub(1)].chunks_exact(self.block_tokens) {
            let Some(block) = self.prefix.get(parent, salt, chunk) else { break };
            if self.pool.hold(block) {
                self.prefix.wake(block);
            }
            table.push(block);
            parent = block;
        }
        table
    }

    /// Lends blocks until `table` has room for `tokens`, and a state slot where one is needed. False, and nothing changed,
    /// when there are not enough.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.blocks_for(tokens).saturating_sub(table.len());
        if missing > self.available() {
            return false;
        }
        if self.states.are_needed() && table.state() == 0 {
            let Some(slot) = self.states.take() else { return false };
            table.set_state(slot);
        }
        for _ in 0..missing {
            let block = self.pool.take().unwrap_or_else(|| {
                let block = self.prefix.evict().expect("available blocks are free or idle: this is a bug");
                self.pool.give(block);
                self.pool.take().expect("a block was just given: this is a bug")
            });
            table.push(block);
        }
        true
    }

    /// Remembers the blocks of `tokens[from..to]` that are now full; all of `tokens[..to]` is computed. A block that
    /// another table computed first takes the place of this table's own: their contents are equal bit for bit.
    pub fn store(&mut self, table: &mut BlockTable, salt: Option<&str>, tokens: &[u32], from: usize, to: usize) {
        if !self.caching {
            return;
        }
        for index in from / self.block_tokens..to / self.block_tokens {
            let parent = if index == 0 { 0 } else { table[index - 1] };
            let own = table[index];
            let chunk = &tokens[index * self.block_tokens..][..self.block_tokens];
            let kept = self.prefix.insert(parent, salt, chunk, own);
            if kept != own {
                if self.pool.hold(kept) {
                    self.prefix.wake(kept);
                }
                self.let_go(own, false);
                table.replace(index, kept);
            }
        }
    }

    /// Takes the blocks of a table back. With `forget`, contents that nobody else uses are not kept: they may be broken.
    pub fn release(&mut self, table: &mut BlockTable, forget: bool) {
        while let Some(block) = table.pop() {
            self.let_go(block, forget);
        }
        if table.state() != 0 {
            self.states.give(table.state());
            table.set_state(0);
        }
    }

    /// Checks every promise of this file against `tables`, the tables of all sequences.
    ///
    /// # Errors
    /// One line saying which is broken.
    pub fn verify<'a>(&self, tables: impl Iterator<Item = &'a BlockTable> + Clone) -> Result<(), String> {
        self.states.verify(tables.clone().map(BlockTable::state).filter(|slot| *slot != 0))?;
        if let Some(table) = tables.clone().find(|t| (t.state() != 0) != (self.keeps_state() && !t.is_empty())) {
            return Err(format!("a table of {} blocks has state slot {}", table.len(), table.state()));
        }
        let mut holders = vec![0u32; self.pool.total() + 1];
        for block in tables.flat_map(|t| t.iter()) {
            holders[*block as usize] += 1;
        }
        self.pool.verify(&holders)?;
        self.prefix.verify(&holders)?;
        let c = self.counts();
        if c.free + c.held + c.cached != c.total {
            return Err(format!("{} free + {} held + {} cached are not {} blocks", c.free, c.held, c.cached, c.total));
        }
        Ok(())
    }

    fn let_go(&mut self, block: u32, forget: bool) {
        if !self.pool.let_go(block) {
            return;
        }
        if !self.prefix.rest(block, forget) {
            self.pool.give(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of all of `tokens`, computed.
    fn computed(kv: &mut KvBlocks, salt: Option<&str>, tokens: &[u32]) -> BlockTable {
        let mut table = kv.find(salt, tokens);
        let from = table.len() * kv.block_tokens();
        assert!(kv.grow(&mut table, tokens.len()));
        kv.store(&mut table, salt, tokens, from, tokens.len());
        table
    }

    #[test]
    fn a_hit_never_covers_the_last_token() {
        let mut kv = KvBlocks::new(20, 4, true);
        let tokens: Vec<u32> = (0..8).collect();
        let mut table = computed(&mut kv, None, &tokens);
        assert_eq!(kv.find(None, &tokens).len(), 1, "eight tokens are two blocks, the second holds the last token");
        kv.release(&mut table, false);
    }

    #[test]
    fn salts_share_nothing() {
        let mut kv = KvBlocks::new(20, 4, true);
        let tokens: Vec<u32> = (0..9).collect();
        let table = computed(&mut kv, Some("a"), &tokens);
        assert_eq!(kv.find(Some("a"), &tokens)[..], table[..2]);
        assert!(kv.find(Some("b"), &tokens).is_empty() && kv.find(None, &tokens).is_empty());
    }

    #[test]
    fn the_least_recently_used_leaf_goes_first_and_block_0_is_never_lent() {
        let mut kv = KvBlocks::new(5, 4, true);
        let (a, b): (Vec<u32>, Vec<u32>) = ((0..8).collect(), (10..18).collect());
        let mut first = computed(&mut kv, None, &a);
        let mut second = computed(&mut kv, None, &b);
        assert!(first.iter().chain(second.iter()).all(|block| *block != 0));
        kv.release(&mut first, false);
        kv.release(&mut second, false);
        assert_eq!(kv.counts(), BlockCounts { total: 4, free: 0, held: 0, cached: 4 });
        let mut table = BlockTable::default();
        assert!(kv.grow(&mut table, 4));
        let more = |tokens: &[u32]| [tokens, &[99]].concat();
        assert_eq!(kv.find(None, &more(&a)).len(), 1, "the leaf of the older chain was taken");
        assert_eq!(kv.find(None, &more(&b)).len(), 2);
    }

    #[test]
    fn forgotten_blocks_are_not_found_again() {
        let mut kv = KvBlocks::new(9, 4, true);
        let tokens: Vec<u32> = (0..9).collect();
        let mut table = computed(&mut kv, None, &tokens);
        kv.release(&mut table, true);
        assert!(kv.find(None, &tokens).is_empty());
        assert_eq!(kv.counts().free, 8);
        kv.verify(std::iter::empty()).unwrap();
    }

    #[test]
    fn a_table_with_blocks_has_a_state_slot_of_its_own() {
        let mut kv = KvBlocks::with_states(9, 4, 3);
        let [mut a, mut b, mut c] = [(); 3].map(|()| BlockTable::default());
        assert!(kv.grow(&mut a, 5) && kv.grow(&mut b, 1) && kv.grow(&mut a, 9));
        assert!(a.state() != b.state() && a.state() * b.state() != 0);
        assert!(!kv.grow(&mut c, 1), "both slots are lent");
        assert_eq!((c.len(), c.state()), (0, 0));
        kv.verify([&a, &b, &c].into_iter()).unwrap();
        kv.release(&mut a, false);
        assert!(kv.grow(&mut c, 1) && a.state() == 0);
        kv.verify([&a, &b, &c].into_iter()).unwrap();
        let twice = BlockTable::default();
        assert!(kv.verify([&a, &twice, &c].into_iter()).is_err(), "b's slot and blocks are lost");
    }

    #[test]
    fn two_tables_with_one_content_share_blocks_in_the_end() {
        let mut kv = KvBlocks::new(9, 4, true);
        let tokens: Vec<u32> = (0..8).collect();
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        assert!(kv.grow(&mut a, 8) && kv.grow(&mut b, 8));
        kv.store(&mut a, None, &tokens, 0, 8);
        kv.store(&mut b, None, &tokens, 0, 8);
        assert_eq!(a[..], b[..]);
        assert_eq!(kv.counts().held, 2);
        kv.verify([&a, &b].into_iter()).unwrap();
    }
}
