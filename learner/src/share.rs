//! A gradient shared out among ranks: who computes which nodes of the tree, what becomes of those
//! whose rank is lost, and the sum of it all. Blocking; knows nothing of sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use tina_model::Gradients;
use tina_proto::v1::PolicyVersion;
use tracing::{debug, warn};

use crate::{
    pass::{Computer, Outcome, Pass},
    step::Progress,
    trainer::TrainError,
    tree::{Node, fold, fold_from, share},
};

/// How often whoever waits for ranks looks whether the step is called off.
const LOOK: Duration = Duration::from_millis(100);

/// An adapter as it goes to ranks.
#[derive(Clone, Debug)]
pub(crate) struct AdapterFile {
    /// Its digest names it; its step is that which the gradient starts from, also where the step has
    /// made updates since.
    pub(crate) version: PolicyVersion,
    pub(crate) bytes: Arc<[u8]>,
}

/// A rank that is connected; a rank that comes back takes another seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat(pub(crate) u64);

/// Work for one rank.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) adapter: &'a AdapterFile,
    pub(crate) dropout_seed: Option<u64>,
    /// To be answered by a sum each.
    pub(crate) nodes: &'a [Node],
    /// All passes of the gradient; the nodes say which.
    pub(crate) passes: &'a [Pass<'a>],
    /// Whether passes without log-probs of the base model must compute them.
    pub(crate) needs_base: bool,
    /// Values of a gradient.
    pub(crate) parameters: usize,
}

/// What is heard of a rank.
#[derive(Debug)]
pub(crate) enum News {
    /// It is through with a pass of so many completions.
    Passed(Seat, usize),
    /// The sum at a node that it was asked for: the values of its gradient, and its passes' outcomes.
    Done {
        seat: Seat,
        node: Node,
        values: Vec<f32>,
        outcomes: Vec<Outcome>,
    },
    /// It is gone, and what it was at with it.
    Lost(Seat, String),
}

/// The ranks beside this one, as whoever makes a step sees them.
pub(crate) trait Crew: fmt::Debug + Send {
    /// Ranks that can be given work.
    fn seats(&mut self) -> Vec<Seat>;

    /// Gives work to a rank that has none. Where that fails, the rank is lost.
    fn give(&mut self, seat: Seat, job: &Job<'_>);

    /// The next news, if any come within `wait`.
    fn hear(&mut self, wait: Duration) -> Option<News>;

    /// Sends a rank away; nothing more is heard of this seat that matters.
    fn dismiss(&mut self, seat: Seat, why: &str);

    /// How long the others are waited for, when this rank is done and has taken as long once more.
    fn patience(&self) -> Duration;
}

/// Who is at what, and what is there.
struct Gathering<'a, 'c> {
    passes: &'a [Pass<'a>],
    crew: Option<&'c mut dyn Crew>,
    progress: &'a Progress,
    gradients: BTreeMap<Node, Gradients>,
    outcomes: Vec<Option<Outcome>>,
    /// Nodes that a rank has yet to answer, and completions of these that count as done.
    out: BTreeMap<Seat, (BTreeSet<Node>, usize)>,
    /// A rank was so late that nobody is waited for any more.
    alone: bool,
}

/// The gradient of `passes`, none where there are none, and what each of them came to. The ranks of
/// `crew` take part; whatever happens to them, the result is the same bits.
pub(crate) fn gradient(
    computer: &Computer<'_>,
    passes: &[Pass<'_>],
    crew: Option<(&mut dyn Crew, &AdapterFile)>,
    progress: &Progress,
) -> Result<(Option<Gradients>, Vec<Outcome>), TrainError> {
    let Some(root) = Node::root(passes.len()) else {
        return Ok((None, Vec::new()));
    };
    let (crew, file) = crew.unzip();
    let mut gathering = Gathering {
        passes,
        crew,
        progress,
        gradients: BTreeMap::new(),
        outcomes: vec![None; passes.len()],
        out: BTreeMap::new(),
        alone: false,
    };
    let gathered = gathering.gather(computer, file, root);
    // Where the step ends early, nobody computes on for it.
    let why = "the step was called off";
    gathering.dismiss_all(why);
    gathered?;
    let Gathering {
        mut gradients,
        outcomes,
        ..
    } = gathering;
    let missing = |pass: usize| TrainError::Ranks(format!("nobody computed pass {pass}"));
    let sum = fold_from(
        root,
        &mut |node| gradients.remove(&node),
        &mut |pass| Err(missing(pass)),
        &mut join,
    )?;
    let outcomes = outcomes.into_iter().enumerate();
    let outcomes = outcomes.map(|(pass, outcome)| outcome.ok_or_else(|| missing(pass)));
    Ok((Some(sum), outcomes.collect::<Result<_, _>>()?))
}

fn join(mut a: Gradients, b: Gradients) -> Result<Gradients, TrainError> {
    a.add(b)?;
    Ok(a)
}

/// The sum at `node`; `pass` gives passes by their number, `done` hears of every one.
pub(crate) fn compute<'p>(
    computer: &Computer<'_>,
    pass: impl Fn(usize) -> Option<&'p Pass<'p>>,
    node: Node,
    progress: &Progress,
    mut done: impl FnMut(usize, Outcome) -> Result<(), TrainError>,
) -> Result<Gradients, TrainError> {
    let leaf = &mut |index: usize| {
        if progress.is_cancelled() {
            return Err(TrainError::Cancelled);
        }
        let missing = || TrainError::Ranks(format!("there is no pass {index}"));
        let (gradients, outcome) = computer.run(pass(index).ok_or_else(missing)?)?;
        done(index, outcome)?;
        Ok(gradients)
    };
    fold(node, leaf, &mut join)
}

impl Gathering<'_, '_> {
    /// Rounds of sharing out and waiting, until the sum at the root can be made.
    fn gather(
        &mut self,
        computer: &Computer<'_>,
        file: Option<&AdapterFile>,
        root: Node,
    ) -> Result<(), TrainError> {
        let costs: Vec<usize> = self.passes.iter().map(Pass::rows).collect();
        let mut missing = vec![root];
        while !missing.is_empty() {
            let seats = match &mut self.crew {
                Some(crew) if !self.alone => crew.seats(),
                _ => Vec::new(),
            };
            let mut shares = share(&missing, &costs, 1 + seats.len()).into_iter();
            let own = shares.next().unwrap_or_default();
            let mut given: Vec<Node> = own.clone();
            for (seat, nodes) in seats.into_iter().zip(shares) {
                self.give(seat, &nodes, computer, file);
                given.extend(nodes);
            }
            let started = Instant::now();
            for node in own {
                let (outcomes, progress) = (&mut self.outcomes, self.progress);
                let passes = self.passes;
                let done = |pass: usize, outcome| {
                    progress.add(passes[pass].completions().count());
                    outcomes[pass] = Some(outcome);
                    Ok(())
                };
                let sum = compute(computer, |index| passes.get(index), node, progress, done)?;
                self.gradients.insert(node, sum);
            }
            self.wait(computer, started.elapsed())?;
            given.retain(|node| !self.gradients.contains_key(node));
            missing = given;
            if !missing.is_empty() {
                let passes: usize = missing.iter().map(|node| node.passes().len()).sum();
                warn!(passes, "ranks were lost: what they had is computed again");
            }
        }
        Ok(())
    }

    fn give(
        &mut self,
        seat: Seat,
        nodes: &[Node],
        computer: &Computer<'_>,
        file: Option<&AdapterFile>,
    ) {
        let (Some(crew), Some(adapter), false) = (&mut self.crew, file, nodes.is_empty()) else {
            return;
        };
        let job = Job {
            adapter,
            dropout_seed: computer.dropout.map(|dropout| dropout.seed),
            nodes,
            passes: self.passes,
            needs_base: computer.settings.loss.kl.in_loss(),
            parameters: computer.adapter.parameter_count() as usize,
        };
        crew.give(seat, &job);
        let nodes = nodes.iter().copied().collect();
        self.out.insert(seat, (nodes, 0));
    }

    /// Until all that was given is answered or lost; `own`: what this rank's share took.
    fn wait(&mut self, computer: &Computer<'_>, own: Duration) -> Result<(), TrainError> {
        let began = Instant::now();
        while !self.out.is_empty() {
            if self.progress.is_cancelled() {
                return Err(TrainError::Cancelled);
            }
            let Some(crew) = &mut self.crew else {
                return Ok(());
            };
            let allowed = own.saturating_add(crew.patience());
            let left = allowed.saturating_sub(began.elapsed());
            if left.is_zero() {
                let late = self.out.len();
                warn!(late, seconds = allowed.as_secs_f64(), "ranks are too late");
                self.alone = true;
                self.dismiss_all("it was too late with its share of a step");
                return Ok(());
            }
            match crew.hear(left.min(LOOK)) {
                None => {}
                Some(News::Passed(seat, completions)) => {
                    if let Some((_, counted)) = self.out.get_mut(&seat) {
                        *counted += completions;
                        self.progress.add(completions);
                    }
                }
                Some(News::Done {
                    seat,
                    node,
                    values,
                    outcomes,
                }) => self.take(computer, seat, node, &values, outcomes)?,
                Some(News::Lost(seat, why)) => {
                    let had_work = self.forget(seat);
                    if had_work {
                        warn!(why, "a rank was lost in the middle of a step");
                    }
                }
            }
        }
        if self.crew.is_some() {
            let waited_seconds = began.elapsed().as_secs_f64();
            let own_seconds = own.as_secs_f64();
            debug!(
                own_seconds,
                waited_seconds, "all shares of a gradient are there"
            );
        }
        Ok(())
    }

    fn take(
        &mut self,
        computer: &Computer<'_>,
        seat: Seat,
        node: Node,
        values: &[f32],
        outcomes: Vec<Outcome>,
    ) -> Result<(), TrainError> {
        let Some((nodes, counted)) = self.out.get_mut(&seat) else {
            return Ok(());
        };
        if !nodes.remove(&node) {
            return Ok(());
        }
        let passes = &self.passes[node.passes()];
        let completions: usize = passes.iter().map(|pass| pass.completions().count()).sum();
        *counted = counted.saturating_sub(completions);
        if nodes.is_empty() {
            self.out.remove(&seat);
        }
        let sum = computer.decoder.gradients_of(computer.adapter, values)?;
        self.gradients.insert(node, sum);
        let places = &mut self.outcomes[node.passes()];
        for (place, outcome) in places.iter_mut().zip(outcomes) {
            *place = Some(outcome);
        }
        Ok(())
    }

    /// Whether it was at work.
    fn forget(&mut self, seat: Seat) -> bool {
        let lost = self.out.remove(&seat);
        if let Some((_, counted)) = &lost {
            self.progress.take_back(*counted);
        }
        lost.is_some()
    }

    fn dismiss_all(&mut self, why: &str) {
        let seats: Vec<Seat> = self.out.keys().copied().collect();
        for seat in seats {
            self.forget(seat);
            if let Some(crew) = &mut self.crew {
                crew.dismiss(seat, why);
            }
        }
    }
}
