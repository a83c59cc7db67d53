//! Sums over a step's passes in one fixed order: a binary tree over their numbers. Pure.
//!
//! A sum of floats depends on its brackets. These here depend on the number of passes alone, so any
//! process may add up any node of the tree, and the whole is the same bits whoever did what. Of
//! passes `[a, b)` the first half, the longer one where they are odd, is added to the second.

/// The passes `start..end` of a step: a node of the tree, if it came from [`Node::root`] by halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Node {
    /// All passes; `None` where there are none.
    pub(crate) fn root(passes: usize) -> Option<Self> {
        (passes > 0).then_some(Self {
            start: 0,
            end: passes,
        })
    }

    pub(crate) fn passes(self) -> std::ops::Range<usize> {
        self.start..self.end
    }

    /// What it is the sum of; `None` for a single pass.
    pub(crate) fn halves(self) -> Option<(Self, Self)> {
        let count = self.end - self.start;
        let middle = self.start + count.div_ceil(2);
        (count > 1).then_some((
            Self {
                end: middle,
                ..self
            },
            Self {
                start: middle,
                ..self
            },
        ))
    }

    /// Whether it is this node or one below it.
    pub(crate) fn is_below(self, above: Self) -> bool {
        if self == above {
            return true;
        }
        above
            .halves()
            .is_some_and(|(a, b)| self.is_below(if self.start < b.start { a } else { b }))
    }

    /// The largest nodes at or below it that lie in `start..end`.
    fn within(self, start: usize, end: usize, found: &mut Vec<Self>) {
        if self.end <= start || self.start >= end {
            return;
        }
        match self.halves() {
            Some((a, b)) if self.start < start || self.end > end => {
                a.within(start, end, found);
                b.within(start, end, found);
            }
            _ => found.push(self),
        }
    }

    /// How often it is halved before a cut comes to lie at `pass`, which is inside of it.
    fn depth_of_cut(self, pass: usize) -> usize {
        match self.halves() {
            Some((_, b)) if b.start == pass => 0,
            Some((a, b)) => 1 + if pass < b.start { a } else { b }.depth_of_cut(pass),
            None => 0,
        }
    }
}

/// Halvings from all passes to one: sums that wait at a time while the tree is walked.
pub(crate) fn depth(passes: usize) -> usize {
    passes.max(1).next_power_of_two().ilog2() as usize
}

/// The sum at a node: `leaf` gives a pass's value, `join` adds the second half to the first.
pub(crate) fn fold<T, E>(
    node: Node,
    leaf: &mut impl FnMut(usize) -> Result<T, E>,
    join: &mut impl FnMut(T, T) -> Result<T, E>,
) -> Result<T, E> {
    fold_from(node, &mut |_| None, leaf, join)
}

/// The same, where `known` may have the sums of nodes already.
pub(crate) fn fold_from<T, E>(
    node: Node,
    known: &mut impl FnMut(Node) -> Option<T>,
    leaf: &mut impl FnMut(usize) -> Result<T, E>,
    join: &mut impl FnMut(T, T) -> Result<T, E>,
) -> Result<T, E> {
    if let Some(sum) = known(node) {
        return Ok(sum);
    }
    match node.halves() {
        None => leaf(node.start),
        Some((a, b)) => {
            let a = fold_from(a, known, leaf, join)?;
            let b = fold_from(b, known, leaf, join)?;
            join(a, b)
        }
    }
}

/// Deals out `nodes`, which don't overlap, to `ranks` in shares of about equal cost; `costs` has one a
/// pass. A share is few nodes, since each costs a gradient on the wire: between cuts that are about
/// as fair, the one highest up in the tree is taken. Where there are fewer passes than ranks, the
/// last go without.
pub(crate) fn share(nodes: &[Node], costs: &[usize], ranks: usize) -> Vec<Vec<Node>> {
    /// How far from fair a cut may be, in parts of a share.
    const TOLERANCE: usize = 20;
    let passes: Vec<usize> = nodes.iter().flat_map(|node| node.passes()).collect();
    let mut before = vec![0];
    for pass in &passes {
        let sum = before[before.len() - 1];
        before.push(sum + costs.get(*pass).copied().unwrap_or(1).max(1));
    }
    let total = before[passes.len()];
    let ranks = ranks.min(passes.len()).max(1);
    // Of a cut before the pass at this place.
    let depth = |place: usize| {
        let around = nodes.iter().find(|node| {
            place > 0 && place < passes.len() && {
                let (last, next) = (passes[place - 1], passes[place]);
                node.passes().contains(&last) && node.passes().contains(&next)
            }
        });
        around.map_or(0, |node| 1 + node.depth_of_cut(passes[place]))
    };
    let mut cuts = vec![0];
    for rank in 1..ranks {
        // Places from one pass a rank before to one pass a rank after.
        let (low, high) = (cuts[rank - 1] + 1, passes.len() - (ranks - rank));
        let off = |place: &usize| (before[*place] * ranks).abs_diff(total * rank);
        let nearest = (low..=high).map(|place| off(&place)).min().unwrap_or(0);
        let fair = (low..=high).filter(|place| off(place) <= nearest.max(total / TOLERANCE));
        let cut = fair.min_by_key(|place| (depth(*place), off(place)));
        cuts.push(cut.unwrap_or(low));
    }
    cuts.push(passes.len());
    cuts.windows(2)
        .map(|cut| {
            let mut own = Vec::new();
            for node in nodes {
                let inside = |place: &usize| node.passes().contains(&passes[*place]);
                let mut places = (cut[0]..cut[1]).filter(inside);
                let Some(first) = places.next() else {
                    continue;
                };
                let last = places.next_back().unwrap_or(first);
                node.within(passes[first], passes[last] + 1, &mut own);
            }
            own
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use super::*;

    /// Values whose sum depends on the brackets.
    fn values(count: usize) -> Vec<f32> {
        let wild = |i: usize| ((i * 7919 + 13) as f32).sin() * 10f32.powi((i * 31 % 9) as i32 - 4);
        (0..count).map(wild).collect()
    }

    fn sum(node: Node, values: &[f32]) -> f32 {
        let leaf = &mut |pass: usize| Ok::<_, Infallible>(values[pass]);
        fold(node, leaf, &mut |a, b| Ok(a + b)).unwrap()
    }

    #[test]
    fn brackets_are_as_written() {
        let text = |count: usize| {
            let leaf = &mut |pass: usize| Ok::<_, Infallible>(pass.to_string());
            let join = &mut |a: String, b: String| Ok(format!("({a}{b})"));
            fold(Node::root(count).unwrap(), leaf, join).unwrap()
        };
        assert_eq!(
            [1, 2, 3, 5, 8].map(text),
            [
                "0",
                "(01)",
                "((01)2)",
                "(((01)2)(34))",
                "(((01)(23))((45)(67)))"
            ]
        );
        assert_eq!(Node::root(0), None);
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 64, 65].map(depth),
            [0, 0, 1, 2, 2, 3, 6, 7]
        );
    }

    #[test]
    fn whoever_adds_up_what_the_sum_is_the_same_bits_and_about_the_naive_one() {
        let mut differs_from_the_running_sum = 0;
        for count in 1..70 {
            let values = values(count);
            let root = Node::root(count).unwrap();
            let whole = sum(root, &values);
            let running = values.iter().fold(0.0, |sum: f32, value| sum + value);
            differs_from_the_running_sum += usize::from(whole.to_bits() != running.to_bits());
            let exact: f64 = values.iter().map(|value| f64::from(*value)).sum();
            let scale: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
            assert!((f64::from(whole) - exact).abs() <= 1e-6 * scale, "{count}");

            for ranks in 1..9 {
                let costs: Vec<usize> = (0..count).map(|i| 1 + i * ranks * 37 % 11).collect();
                let shares = share(&[root], &costs, ranks);
                let mut known: BTreeMap<Node, f32> = BTreeMap::new();
                for node in shares.iter().flatten() {
                    assert!(node.is_below(root));
                    known.insert(*node, sum(*node, &values));
                }
                let found = fold_from(
                    root,
                    &mut |node| known.remove(&node),
                    &mut |pass| Err(format!("nobody has pass {pass}")),
                    &mut |a, b| Ok(a + b),
                );
                assert_eq!(found.unwrap().to_bits(), whole.to_bits(), "{count} {ranks}");
                assert!(known.is_empty(), "a node was computed for nothing");
            }
        }
        assert!(
            differs_from_the_running_sum > 40,
            "values whose order doesn't matter prove nothing"
        );
    }

    #[test]
    fn shares_are_fair_and_of_few_nodes() {
        for count in [8, 13, 64, 100] {
            for ranks in [2, 3, 4, 8] {
                let costs = vec![1000; count];
                let root = Node::root(count).unwrap();
                let shares = share(&[root], &costs, ranks);
                assert_eq!(shares.len(), ranks);
                let passes = |nodes: &Vec<Node>| -> usize {
                    nodes.iter().map(|node| node.passes().len()).sum()
                };
                assert_eq!(shares.iter().map(passes).sum::<usize>(), count);
                for own in &shares {
                    // A pass more or less, and the tolerance.
                    let off = passes(own) as f64 - count as f64 / ranks as f64;
                    assert!(
                        off.abs() <= 1.0 + count as f64 / 20.0,
                        "{count} {ranks}: {own:?}"
                    );
                    assert!(own.len() <= 2 * depth(count), "{count} {ranks}: {own:?}");
                }
                if count.is_power_of_two() && ranks.is_power_of_two() {
                    assert!(shares.iter().all(|own| own.len() == 1), "{shares:?}");
                }
            }
        }
        // Two ranks take a half each, although another cut were a little fairer.
        let costs: Vec<usize> = (0..64).map(|i| if i < 32 { 95 } else { 100 }).collect();
        let two = share(&[Node { start: 0, end: 64 }], &costs, 2);
        assert_eq!(
            two,
            [[Node { start: 0, end: 32 }], [Node { start: 32, end: 64 }]]
        );
        // But not where it is much fairer.
        let two = share(&[Node { start: 0, end: 4 }], &[900, 100, 100, 100], 2);
        assert_eq!(two[0], [Node { start: 0, end: 1 }]);
    }

    #[test]
    fn what_a_lost_rank_had_is_dealt_out_again() {
        let costs = vec![1; 16];
        let missing = [Node { start: 4, end: 8 }, Node { start: 12, end: 14 }];
        let shares = share(&missing, &costs, 2);
        let all: Vec<usize> = shares.iter().flatten().flat_map(|n| n.passes()).collect();
        assert_eq!(all, [4, 5, 6, 7, 12, 13]);
        assert!(
            shares
                .iter()
                .flatten()
                .all(|node| missing.iter().any(|m| node.is_below(*m)))
        );
        assert_eq!(
            share(&[Node { start: 3, end: 4 }], &costs, 5),
            [[Node { start: 3, end: 4 }]]
        );
    }

    #[test]
    fn only_what_halving_leads_to_is_a_node() {
        let root = Node::root(8).unwrap();
        assert!(Node { start: 4, end: 6 }.is_below(root));
        for (start, end) in [(3, 5), (0, 3), (7, 9), (8, 9)] {
            assert!(!Node { start, end }.is_below(root), "{start} {end}");
        }
    }
}
