//! How a batch is cut into passes of a bounded number of rows. Pure.
//!
//! Groups stay in their order, and whole where they fit, because the completions of one group
//! share their prompt's rows. A group larger than the budget is split by completions, and its
//! prompt computed again for each part.

/// One group's completions that take part in a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index of the group in the batch.
    pub group: usize,
    /// Indices of its samples.
    pub samples: Vec<usize>,
    /// Place of the first of them among the group's computed samples: not 0 where it was split.
    pub offset: usize,
}

/// One forward and backward pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Its groups, or parts of them.
    pub parts: Vec<Part>,
    /// Rows that the pass computes.
    pub rows: usize,
}

/// A group as the cutter sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupShape {
    /// Index of the group in the batch.
    pub group: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Index and tokens of every sample that must be computed.
    pub samples: Vec<(usize, usize)>,
    /// Groups of different kinds (sampled from different distributions) share no pass.
    pub kind: usize,
}

/// Rows of a completion of `tokens` tokens after its prompt: its last token predicts nothing.
fn completion_rows(tokens: usize) -> usize {
    tokens.saturating_sub(1)
}

/// Cuts `groups` into passes of at most `budget` rows; a sequence longer than that goes alone.
/// Groups without samples to compute are left out.
pub fn cut(groups: &[GroupShape], budget: usize) -> Vec<MicroBatch> {
    let mut passes = Vec::new();
    let mut open = MicroBatch::default();
    let mut open_kind = 0;
    for shape in groups.iter().filter(|shape| !shape.samples.is_empty()) {
        let rows: usize = shape
            .samples
            .iter()
            .map(|(_, tokens)| completion_rows(*tokens))
            .sum();
        let whole = shape.prompt + rows;
        if !open.parts.is_empty() && (open.rows + whole > budget || open_kind != shape.kind) {
            passes.push(std::mem::take(&mut open));
        }
        open_kind = shape.kind;
        // One round where the group fits; otherwise as many as its completions need.
        let mut part = Part {
            group: shape.group,
            samples: Vec::new(),
            offset: 0,
        };
        open.rows += shape.prompt;
        for (place, &(sample, tokens)) in shape.samples.iter().enumerate() {
            let rows = completion_rows(tokens);
            if !part.samples.is_empty() && open.rows + rows > budget {
                let next = Part {
                    group: shape.group,
                    samples: Vec::new(),
                    offset: place,
                };
                open.parts.push(std::mem::replace(&mut part, next));
                passes.push(std::mem::take(&mut open));
                open.rows = shape.prompt;
            }
            part.samples.push(sample);
            open.rows += rows;
        }
        open.parts.push(part);
    }
    if !open.parts.is_empty() {
        passes.push(open);
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(group: usize, prompt: usize, lengths: &[usize]) -> GroupShape {
        let samples = lengths.iter().copied().enumerate().collect();
        GroupShape {
            group,
            prompt,
            samples,
            kind: 0,
        }
    }

    /// In these tests every sample is computed, so its index is its place.
    fn part(group: usize, samples: &[usize]) -> Part {
        Part {
            group,
            samples: samples.to_vec(),
            offset: samples[0],
        }
    }

    #[test]
    fn groups_that_fit_share_a_pass_and_stay_whole() {
        // 4 + 2 + 2 = 8 rows each: two fit into 16, the third opens a pass of its own.
        let groups = [
            shape(0, 4, &[3, 3]),
            shape(1, 4, &[3, 3]),
            shape(2, 4, &[3, 3]),
        ];
        let passes = cut(&groups, 16);
        assert_eq!(
            passes,
            [
                MicroBatch {
                    parts: vec![part(0, &[0, 1]), part(1, &[0, 1])],
                    rows: 16
                },
                MicroBatch {
                    parts: vec![part(2, &[0, 1])],
                    rows: 8
                },
            ]
        );
    }

    #[test]
    fn a_group_over_the_budget_is_split_and_its_prompt_repeated() {
        let passes = cut(
            &[
                shape(0, 1, &[2]),
                shape(1, 4, &[4, 4, 4]),
                shape(2, 1, &[2]),
            ],
            10,
        );
        assert_eq!(
            passes,
            [
                MicroBatch {
                    parts: vec![part(0, &[0])],
                    rows: 2
                },
                MicroBatch {
                    parts: vec![part(1, &[0, 1])],
                    rows: 10
                },
                MicroBatch {
                    parts: vec![part(1, &[2]), part(2, &[0])],
                    rows: 9
                },
            ]
        );
    }

    #[test]
    fn a_sequence_over_the_budget_goes_alone() {
        let passes = cut(&[shape(0, 5, &[9, 2, 9])], 6);
        let samples: Vec<_> = passes.iter().map(|p| p.parts[0].samples.clone()).collect();
        assert_eq!(samples, [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn every_sample_is_in_exactly_one_pass_and_no_pass_is_over_the_budget() {
        let groups: Vec<GroupShape> = (0..40)
            .map(|g| {
                let lengths: Vec<usize> = (0..g % 7).map(|s| 1 + (g * 13 + s * 29) % 17).collect();
                shape(g, 1 + g % 5, &lengths)
            })
            .collect();
        for budget in [1, 8, 21, 22, 64, 1000] {
            let passes = cut(&groups, budget);
            let mut seen = Vec::new();
            for pass in &passes {
                let mut rows = 0;
                for part in &pass.parts {
                    let shape = &groups[part.group];
                    rows += shape.prompt;
                    for sample in &part.samples {
                        rows += shape.samples[*sample].1 - 1;
                        seen.push((part.group, *sample));
                    }
                }
                let alone = pass.parts.len() == 1 && pass.parts[0].samples.len() == 1;
                assert_eq!(rows, pass.rows);
                assert!(rows <= budget || alone, "{pass:?} over {budget}");
            }
            let all: Vec<_> = groups
                .iter()
                .flat_map(|g| g.samples.iter().map(|(sample, _)| (g.group, *sample)))
                .collect();
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn groups_of_different_kinds_share_no_pass() {
        let groups = [
            shape(0, 1, &[2]),
            GroupShape {
                kind: 1,
                ..shape(1, 1, &[2])
            },
        ];
        assert_eq!(cut(&groups, 100).len(), 2);
        assert!(cut(&[shape(0, 3, &[])], 100).is_empty());
    }
}
