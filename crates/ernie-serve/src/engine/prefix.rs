//! What earlier requests have read: full blocks, found again by the ids that they hold.
//!
//! A tree: each node is a block, its key the ids in it, its parent the block before. A prompt is followed from the root
//! block by block, so two prompts share exactly the blocks up to where they part. Ids are compared, not only their
//! hashes, and a node's number is never used twice: what is found is what was read. Each adapter has a root of its own,
//! because what it makes of the same ids is something else. What nobody else holds may be evicted, longest unused first
//! and children before their parents (after RadixAttention, arXiv:2312.07104).

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::blocks::Block;

/// The root of what was read through an adapter, or none. Roots count down from the largest number, nodes up from 0.
fn root(adapter: Option<usize>) -> u64 {
    u64::MAX - adapter.map_or(0, |adapter| adapter as u64 + 1)
}

#[derive(Debug)]
pub(super) struct PrefixCache {
    block_tokens: usize,
    /// Nodes at most.
    capacity: usize,
    nodes: HashMap<u64, Node>,
    children: HashMap<u64, HashMap<Box<[u32]>, u64>>,
    /// The order of eviction: last use, then the deeper first.
    order: BTreeSet<(u64, Reverse<usize>, u64)>,
    clock: u64,
    next: u64,
}

#[derive(Debug)]
struct Node {
    parent: u64,
    ids: Box<[u32]>,
    depth: usize,
    used: u64,
    block: Block,
}

/// How much of a prompt is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Hit {
    /// Blocks from the start of the prompt.
    pub(super) blocks: usize,
    /// How many of these nobody but the cache holds.
    pub(super) idle: usize,
}

impl PrefixCache {
    /// An empty cache of at most `capacity` blocks.
    pub(super) fn new(block_tokens: usize, capacity: usize) -> Self {
        Self {
            block_tokens,
            capacity,
            nodes: HashMap::new(),
            children: HashMap::new(),
            order: BTreeSet::new(),
            clock: 0,
            next: 0,
        }
    }

    /// Blocks that nobody else holds: what [`PrefixCache::evict`] can give back.
    pub(super) fn idle(&self) -> usize {
        self.nodes.values().filter(|node| node.block.holders() == 1).count()
    }

    /// Looks up the full blocks of `ids`, as an adapter reads them, without touching them.
    pub(super) fn peek(&self, adapter: Option<usize>, ids: &[u32]) -> Hit {
        let path = self.path(adapter, ids);
        let idle = path.iter().filter(|node| self.nodes[node].block.holders() == 1).count();
        Hit { blocks: path.len(), idle }
    }

    /// Handles of the full blocks of `ids` that are there.
    pub(super) fn take(&mut self, adapter: Option<usize>, ids: &[u32]) -> Vec<Block> {
        let path = self.path(adapter, ids);
        self.touch(&path);
        path.iter().map(|node| self.nodes[node].block.clone()).collect()
    }

    /// Puts in the full blocks of `ids`, which `blocks` hold. A block that is there already takes the place of the one
    /// handed in, so that equal blocks exist once. Returns how many of `blocks` are in the cache now.
    pub(super) fn put(&mut self, adapter: Option<usize>, ids: &[u32], blocks: &mut [Block]) -> usize {
        let mut path = Vec::with_capacity(blocks.len());
        let mut parent = root(adapter);
        for (part, block) in ids.chunks_exact(self.block_tokens).zip(blocks.iter_mut()) {
            if let Some(&node) = self.children.get(&parent).and_then(|children| children.get(part)) {
                *block = self.nodes[&node].block.clone();
                parent = node;
            } else {
                if self.nodes.len() >= self.capacity && !self.evict() {
                    break;
                }
                let node = self.next;
                self.next += 1;
                self.children.entry(parent).or_default().insert(part.into(), node);
                let depth = path.len();
                self.order.insert((self.clock, Reverse(depth), node));
                self.nodes
                    .insert(node, Node { parent, ids: part.into(), depth, used: self.clock, block: block.clone() });
                parent = node;
            }
            path.push(parent);
        }
        self.touch(&path);
        path.len()
    }

    /// Lets go of the block that was unused for longest. `false` if every block is held by somebody else too.
    pub(super) fn evict(&mut self) -> bool {
        // A request that holds a block holds all before it, and whoever uses a block uses all before it: so the first
        // idle node in this order has no children.
        let oldest = self.order.iter().find(|(_, _, node)| self.nodes[node].block.holders() == 1).copied();
        let Some(oldest) = oldest else { return false };
        self.order.remove(&oldest);
        let Some(node) = self.nodes.remove(&oldest.2) else { return false };
        debug_assert!(!self.children.contains_key(&oldest.2), "a parent goes after its children");
        if let Some(children) = self.children.get_mut(&node.parent) {
            children.remove(&node.ids);
            if children.is_empty() {
                self.children.remove(&node.parent);
            }
        }
        true
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        self.nodes.clear();
        self.children.clear();
        self.order.clear();
    }

    /// The nodes of the full blocks of `ids`, from the root as far as they are there.
    fn path(&self, adapter: Option<usize>, ids: &[u32]) -> Vec<u64> {
        let mut parent = root(adapter);
        let mut path = Vec::new();
        for part in ids.chunks_exact(self.block_tokens) {
            let Some(&node) = self.children.get(&parent).and_then(|children| children.get(part)) else { break };
            path.push(node);
            parent = node;
        }
        path
    }

    fn touch(&mut self, path: &[u64]) {
        self.clock += 1;
        for id in path {
            if let Some(node) = self.nodes.get_mut(id) {
                self.order.remove(&(node.used, Reverse(node.depth), *id));
                node.used = self.clock;
                self.order.insert((node.used, Reverse(node.depth), *id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::BlockPool;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_blocks_exist_once_and_others_are_told_apart() {
        let (pool, mut cache) = (BlockPool::new(10), PrefixCache::new(2, 10));
        let take = |n: usize| -> Vec<Block> { (0..n).map(|_| pool.take().unwrap()).collect() };
        let mut first = take(2);
        assert_eq!(cache.put(None, &[1, 2, 3, 4, 5], &mut first), 2);
        let mut second = take(2);
        assert_eq!(cache.put(None, &[1, 2, 9, 9], &mut second), 2);
        assert_eq!((second[0].id(), pool.used()), (first[0].id(), 3));
        // The same ids behind another parent are another block, and so they are through an adapter.
        assert_eq!((cache.peek(Some(0), &[1, 2, 3, 4]), cache.take(Some(7), &[1, 2]).len()), (Hit::default(), 0));
        assert_eq!(cache.peek(None, &[9, 9, 3, 4]), Hit::default());
        assert_eq!(cache.peek(None, &[1, 2, 3, 4, 7]), Hit { blocks: 2, idle: 0 });
        drop((first, second));
        assert_eq!(cache.peek(None, &[1, 2, 3, 4]), Hit { blocks: 2, idle: 2 });
        assert_eq!((cache.nodes.len(), cache.idle(), pool.used()), (3, 3, 3));
        let held = cache.take(None, &[1, 2, 3, 4]);
        assert!(cache.evict() && !cache.evict(), "only what nobody holds goes");
        assert_eq!(cache.peek(None, &[1, 2, 9, 9]), Hit { blocks: 1, idle: 0 });
        drop(held);
        assert!(cache.evict() && cache.evict() && !cache.evict());
        assert_eq!(pool.used(), 0);
    }

    proptest! {
        /// Against a list of all prefixes ever put in: what is found was put in, and the cap holds.
        #[test]
        fn what_is_found_is_what_was_read(
            capacity in 0usize..6,
            texts in prop::collection::vec(
                (prop::option::of(0usize..3), prop::collection::vec(0u32..3, 0..9), any::<bool>()),
                1..60,
            ),
        ) {
            let (pool, mut cache) = (BlockPool::new(1000), PrefixCache::new(2, capacity));
            let mut content: HashMap<u32, (Option<usize>, Vec<u32>)> = HashMap::new();
            let mut running: Vec<Vec<Block>> = Vec::new();
            for (adapter, ids, stays) in texts {
                let mut table = cache.take(adapter, &ids);
                for (at, block) in table.iter().enumerate() {
                    let held = (adapter, ids[..2 * (at + 1)].to_vec());
                    prop_assert_eq!(&content[&block.id()], &held, "another prefix's block");
                }
                while table.len() < ids.len() / 2 {
                    let block = pool.take().unwrap();
                    content.insert(block.id(), (adapter, ids[..2 * (table.len() + 1)].to_vec()));
                    table.push(block);
                }
                let put = cache.put(adapter, &ids, &mut table);
                prop_assert!(put <= table.len() && cache.nodes.len() <= capacity);
                prop_assert_eq!(cache.peek(adapter, &ids).blocks, put);
                prop_assert_eq!(cache.order.len(), cache.nodes.len());
                if stays { running.push(table) } else { running.pop(); }
            }
            running.clear();
            prop_assert_eq!(cache.idle(), cache.nodes.len());
            prop_assert_eq!(pool.used(), cache.nodes.len());
            while cache.evict() {}
            prop_assert_eq!((cache.nodes.len(), pool.used(), cache.children.len()), (0, 0, 0));
        }
    }
}
