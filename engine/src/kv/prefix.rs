//! Owns what computed blocks contain: a trie whose edges are (parent block, tokens), compared exactly, so that no two
//! contents can be taken for each other. Knows no holders but whether there are any.
//!
//! A holder of a block holds its parents, so blocks that nobody holds have only such children, and giving up leaves
//! first frees every one of them in the end.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

pub struct PrefixCache {
    index: HashMap<Arc<Edge>, u32>,
    /// By block.
    nodes: Vec<Option<Node>>,
    /// Leaves that nobody holds, least recently used first.
    leaves: BTreeSet<(u64, u32)>,
    /// Cached blocks that nobody holds.
    idle: usize,
    clock: u64,
}

#[derive(PartialEq, Eq, Hash)]
struct Edge {
    /// 0 at the beginning of a sequence.
    parent: u32,
    /// Tenant; at the beginning only, below the parent says it.
    salt: Option<Box<str>>,
    tokens: Box<[u32]>,
}

struct Node {
    edge: Arc<Edge>,
    children: u32,
    idle: bool,
    last_use: u64,
}

impl PrefixCache {
    pub fn new(blocks: usize) -> Self {
        let nodes = std::iter::repeat_with(|| None).take(blocks).collect();
        Self { index: HashMap::new(), nodes, leaves: BTreeSet::new(), idle: 0, clock: 0 }
    }

    /// Cached blocks that nobody holds: each can be had by [`Self::evict`].
    pub fn idle(&self) -> usize {
        self.idle
    }

    pub fn get(&self, parent: u32, salt: Option<&str>, tokens: &[u32]) -> Option<u32> {
        self.index.get(&Edge::new(parent, salt, tokens)).copied()
    }

    /// Caches held block `own`, unless the content is already cached: the block that now stands for it.
    pub fn insert(&mut self, parent: u32, salt: Option<&str>, tokens: &[u32], own: u32) -> u32 {
        let edge = Arc::new(Edge::new(parent, salt, tokens));
        if let Some(block) = self.index.get(&edge) {
            return *block;
        }
        if parent != 0 {
            self.node(parent).children += 1;
        }
        self.index.insert(edge.clone(), own);
        self.nodes[own as usize] = Some(Node { edge, children: 0, idle: false, last_use: 0 });
        own
    }

    /// A cached block got its first holder.
    pub fn wake(&mut self, block: u32) {
        let node = self.node(block);
        debug_assert!(node.idle);
        node.idle = false;
        let key = (node.last_use, block);
        self.leaves.remove(&key);
        self.idle -= 1;
    }

    /// A block lost its last holder. False when it is not cached (any more): the caller owns it.
    pub fn rest(&mut self, block: u32, forget: bool) -> bool {
        let Some(node) = &mut self.nodes[block as usize] else { return false };
        self.clock += 1;
        node.idle = true;
        node.last_use = self.clock;
        let leaf = node.children == 0;
        self.idle += 1;
        if leaf {
            self.leaves.insert((self.clock, block));
        }
        if leaf && forget {
            self.remove(block);
            return false;
        }
        true
    }

    /// Gives up the least recently used leaf that nobody holds.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, block) = *self.leaves.first()?;
        self.remove(block);
        Some(block)
    }

    pub fn verify(&self, holders: &[u32]) -> Result<(), String> {
        let mut children = vec![0; self.nodes.len()];
        let mut idle = 0;
        for (block, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let parent = node.edge.parent as usize;
            if parent != 0 && self.nodes[parent].is_none() {
                return Err(format!("cached block {block} lost its parent {parent}"));
            }
            if parent != 0 && holders[block] > 0 && holders[parent] == 0 {
                return Err(format!("block {block} is held but its parent {parent} is not"));
            }
            children[parent] += 1;
            idle += usize::from(node.idle);
            if node.idle != (holders[block] == 0) {
                return Err(format!("cached block {block} is wrongly taken for idle or held"));
            }
        }
        for (block, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let leaf = node.idle && node.children == 0;
            if node.children != children[block] || leaf != self.leaves.contains(&(node.last_use, block as u32)) {
                return Err(format!("cached block {block} has its children miscounted"));
            }
        }
        let whole = idle == self.idle && self.index.len() == self.nodes.iter().flatten().count();
        if whole { Ok(()) } else { Err("cached blocks are miscounted".into()) }
    }

    fn remove(&mut self, block: u32) {
        let node = self.nodes[block as usize].take().expect("cached blocks have nodes: this is a bug");
        self.leaves.remove(&(node.last_use, block));
        self.index.remove(&node.edge);
        self.idle -= 1;
        let parent = node.edge.parent;
        if parent != 0 {
            let above = self.node(parent);
            above.children -= 1;
            if above.children == 0 && above.idle {
                let key = (above.last_use, parent);
                self.leaves.insert(key);
            }
        }
    }

    fn node(&mut self, block: u32) -> &mut Node {
        self.nodes[block as usize].as_mut().expect("cached blocks have nodes: this is a bug")
    }
}

impl Edge {
    fn new(parent: u32, salt: Option<&str>, tokens: &[u32]) -> Self {
        let salt = if parent == 0 { salt.map(Into::into) } else { None };
        Self { parent, salt, tokens: tokens.into() }
    }
}
