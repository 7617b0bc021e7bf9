//! Never fooled: what a registry says is not believed at once when it says that many or all are gone.
//!
//! Pure: time and verdicts come in as arguments. Additions count at once, and so do removals of a few. An empty answer
//! after a full one, or more than [`Policy::mass`] percent leaving within a second, is held: the last good set stays.
//! After [`Policy::hold`] a fresh question must confirm it; then [`Policy::keep`] decides. An error changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::Instance;

/// Backends by address.
pub type Set = BTreeMap<SocketAddr, Instance>;

/// Removals within this time are "at once".
const AT_ONCE: Duration = Duration::from_secs(1);
/// So many removals one after the other are no mass.
const FEW: usize = 2;
/// A fresh question that was not answered is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// How much a registry is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long removals are held before a fresh question.
    pub hold: Duration,
    /// What is confirmed stays all the same: all when nobody would be left, else those that our own checks find up.
    pub keep: bool,
    /// More than this share leaving at once is held, percent.
    pub mass: u8,
}

/// Why removals are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody was left.
    Empty,
    /// Too many left at once.
    Mass,
    /// The answer came from a registry without a leader, which may know less than there is.
    NoLeader,
}

impl Why {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Empty => "the registry says that nobody is left",
            Self::Mass => "too many left at once",
            Self::NoLeader => "the registry has no leader",
        }
    }
}

/// Removals that are not believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Why.
    pub why: Why,
    /// Since when.
    pub since: Instant,
    /// Who would be gone.
    pub held: BTreeSet<SocketAddr>,
    /// A fresh question was asked at this time.
    asked: Option<Instant>,
    /// A fresh answer after the hold said the same.
    pub confirmed: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Guard {
    policy: Policy,
    good: Set,
    said: Option<Set>,
    hold: Option<Hold>,
    left: VecDeque<(Instant, BTreeSet<SocketAddr>)>,
}

impl Guard {
    /// Begins with the last good set of before.
    #[must_use]
    pub const fn new(policy: Policy, good: Set) -> Self {
        Self { policy, good, said: None, hold: None, left: VecDeque::new() }
    }

    /// Another policy from now on.
    pub const fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The set that counts.
    #[must_use]
    pub const fn good(&self) -> &Set {
        &self.good
    }

    /// What is held.
    #[must_use]
    pub const fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// Takes an answer; `fresh` if it answers a question asked after [`Guard::tick`] wanted one; `whole` unless the
    /// registry may know less than there is. Says whether the good set changed.
    pub fn take(&mut self, now: Instant, said: Set, fresh: bool, whole: bool) -> bool {
        let before = self.good.clone();
        let missing: BTreeSet<SocketAddr> = self.good.keys().filter(|a| !said.contains_key(*a)).copied().collect();
        let held = self.hold.as_ref().map(|hold| hold.held.clone()).unwrap_or_default();
        let news: BTreeSet<SocketAddr> = missing.difference(&held).copied().collect();
        while self.left.front().is_some_and(|(at, _)| now.duration_since(*at) > AT_ONCE) {
            self.left.pop_front();
        }
        // One that is back has not left.
        let lately: BTreeSet<_> =
            self.left.iter().flat_map(|(_, left)| left).filter(|address| !said.contains_key(*address)).collect();
        let lately = lately.len();
        // Two that happen to leave one after the other are no mass yet.
        let lately = if news.len() + lately > FEW { lately } else { 0 };
        let standing = self.good.len() - held.len() + lately;
        let leaving = news.len() + lately;
        let too_many = leaving > 1 && leaving * 100 > standing * usize::from(self.policy.mass);
        let why = match () {
            () if !whole => Some(Why::NoLeader),
            () if said.is_empty() => Some(Why::Empty),
            () if too_many && self.policy.mass < 100 => Some(Why::Mass),
            () => None,
        };
        if let Some(why) = why
            && !missing.is_empty()
        {
            self.keep_back(now, why, &news);
        } else if !news.is_empty() {
            self.good.retain(|address, _| !news.contains(address));
            self.left.push_back((now, news));
        }
        if let Some(hold) = &mut self.hold {
            hold.held.retain(|address| missing.contains(address));
            // It knows some again: who is still missing is missing like any other.
            if hold.why == Why::Empty && !said.is_empty() {
                hold.why = Why::Mass;
            }
            hold.confirmed |= fresh && whole && hold.asked.is_some();
            if hold.held.is_empty() {
                self.hold = None;
            } else if whole && hold.why == Why::NoLeader {
                // The registry has a leader again: from here on the removals count like any others.
                self.hold = None;
                return self.take(now, said, fresh, whole) || self.good != before;
            }
        }
        self.good.extend(said.iter().map(|(address, instance)| (*address, instance.clone())));
        self.said = Some(said);
        self.good != before
    }

    fn keep_back(&mut self, now: Instant, why: Why, news: &BTreeSet<SocketAddr>) {
        let hold = self.hold.get_or_insert_with(|| Hold {
            why,
            since: now,
            held: BTreeSet::new(),
            asked: None,
            confirmed: false,
        });
        if !news.is_empty() {
            hold.confirmed = false;
        }
        // Nobody left is worse than few; what a leaderless registry says is worse than nothing.
        if why == Why::Empty || hold.why == Why::NoLeader {
            hold.why = why;
        }
        hold.held.extend(news);
    }

    /// Whether a fresh question is wanted now; asks for it once in a while.
    pub fn wants_fresh(&mut self, now: Instant) -> bool {
        let Some(hold) = &mut self.hold else { return false };
        let due = !hold.confirmed
            && now.duration_since(hold.since) >= self.policy.hold
            && hold.asked.is_none_or(|asked| now.duration_since(asked) >= ASK_AGAIN);
        if due {
            hold.asked = Some(now);
        }
        due
    }

    /// Lets confirmed removals through as the policy says; `down` is what our own checks say. Says whether the good
    /// set changed.
    pub fn settle(&mut self, down: impl Fn(SocketAddr) -> bool) -> bool {
        let Some(hold) = &mut self.hold else { return false };
        if !hold.confirmed {
            return false;
        }
        let gone: BTreeSet<SocketAddr> = match (self.policy.keep, hold.why) {
            (false, _) => hold.held.clone(),
            (true, Why::Mass) => hold.held.iter().filter(|address| down(**address)).copied().collect(),
            (true, _) => BTreeSet::new(),
        };
        hold.held.retain(|address| !gone.contains(address));
        if hold.held.is_empty() {
            self.hold = None;
        }
        self.good.retain(|address, _| !gone.contains(address));
        !gone.is_empty()
    }

    /// The operator believes it: what is held goes. Gives how many.
    pub fn release(&mut self) -> usize {
        let Some(hold) = self.hold.take() else { return 0 };
        self.good.retain(|address, _| !hold.held.contains(address));
        hold.held.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const HOLD: Duration = Duration::from_secs(30);

    fn set(numbers: impl IntoIterator<Item = u8>) -> Set {
        numbers.into_iter().map(|n| (SocketAddr::from(([10, 0, 0, n], 80)), Instance::of_weight(1))).collect()
    }

    fn guard(keep: bool, good: impl IntoIterator<Item = u8>) -> Guard {
        Guard::new(Policy { hold: HOLD, keep, mass: 50 }, set(good))
    }

    fn numbers(guard: &Guard) -> Vec<u8> {
        guard
            .good()
            .keys()
            .map(|address| match address.ip() {
                std::net::IpAddr::V4(v4) => v4.octets()[3],
                std::net::IpAddr::V6(_) => 0,
            })
            .collect()
    }

    /// Long after any other removal.
    fn later(now: &mut Instant) -> Instant {
        *now += Duration::from_secs(10);
        *now
    }

    #[test]
    fn after_an_empty_answer_the_dead_go_once_the_registry_knows_others() {
        let mut now = Instant::now();
        let mut guard = guard(true, [1, 2, 3]);
        guard.take(now, set([]), false, true);
        guard.take(later(&mut now), set([1, 2]), false, true);
        assert_eq!(guard.hold().unwrap().why, Why::Mass);
        now += HOLD;
        assert!(guard.wants_fresh(now));
        guard.take(now, set([1, 2]), true, true);
        assert!(!guard.settle(|_| false), "it answers our own check");
        assert!(guard.settle(|address| address == *set([3]).keys().next().unwrap()));
        assert_eq!((numbers(&guard), guard.hold()), (vec![1, 2], None));
    }

    #[test]
    fn additions_and_single_removals_count_at_once() {
        let mut now = Instant::now();
        let mut guard = guard(true, []);
        assert!(guard.take(now, set([1, 2, 3]), false, true));
        assert!(guard.take(later(&mut now), set([2, 3, 4]), false, true));
        assert_eq!(numbers(&guard), [2, 3, 4]);
        assert!(!guard.take(later(&mut now), set([2, 3, 4]), false, true), "the same again is no change");
        assert_eq!(guard.hold(), None);
    }

    #[test]
    fn an_empty_answer_is_held_and_confirmed_by_a_fresh_question() {
        for keep in [true, false] {
            let now = Instant::now();
            let mut guard = guard(keep, [1, 2]);
            assert!(!guard.take(now, set([]), false, true));
            assert_eq!(guard.hold().unwrap().why, Why::Empty);
            assert!(!guard.wants_fresh(now + HOLD / 2), "not before the hold is over");
            assert!(!guard.settle(|_| true));
            assert!(guard.wants_fresh(now + HOLD) && !guard.wants_fresh(now + HOLD), "asked once");
            assert!(!guard.settle(|_| true), "nothing goes before the answer");
            guard.take(now + HOLD, set([]), true, true);
            assert_eq!(guard.settle(|_| true), !keep);
            assert_eq!(numbers(&guard), if keep { vec![1, 2] } else { vec![] });
        }
    }

    #[test]
    fn an_answer_to_an_old_question_confirms_nothing() {
        let now = Instant::now();
        let mut guard = guard(false, [1, 2]);
        guard.take(now, set([]), true, true);
        guard.take(now + HOLD * 2, set([]), false, true);
        assert!(!guard.settle(|_| true));
    }

    #[test]
    fn they_come_back_and_nothing_happened() {
        let now = Instant::now();
        let mut guard = guard(false, [1, 2, 3]);
        guard.take(now, set([]), false, true);
        assert!(!guard.take(now + HOLD / 2, set([1, 2, 3]), false, true));
        assert_eq!(guard.hold(), None);
    }

    #[test]
    fn a_registry_that_lost_its_state_and_refills_slowly_takes_nobody_away() {
        let mut now = Instant::now();
        let mut guard = guard(true, 1..=10);
        guard.take(now, set([]), false, true);
        for n in 1..=9 {
            guard.take(later(&mut now), set(1..=n), false, true);
            assert_eq!(guard.good().len(), 10, "{n} are back");
        }
        guard.take(later(&mut now), set(1..=10), false, true);
        assert_eq!(guard.hold(), None);
    }

    #[test]
    fn more_than_half_at_once_is_held_and_half_is_not() {
        let now = Instant::now();
        let mut half = guard(true, 1..=10);
        assert!(half.take(now, set(1..=5), false, true));
        let mut more = guard(true, 1..=10);
        assert!(!more.take(now, set(1..=4), false, true));
        assert_eq!((more.hold().unwrap().why, more.hold().unwrap().held.len()), (Why::Mass, 6));
        let mut never = guard(true, 1..=10);
        never.set_policy(Policy { hold: HOLD, keep: true, mass: 100 });
        assert!(never.take(now, set([1]), false, true) && numbers(&never) == [1]);
    }

    #[test]
    fn many_small_removals_within_a_second_are_a_mass() {
        let mut now = Instant::now();
        let mut guard = guard(true, 1..=10);
        for left in (1..=9).rev() {
            now += Duration::from_millis(50);
            guard.take(now, set(1..=left), false, true);
        }
        assert_eq!(numbers(&guard).len(), 5, "half went, the rest is held");
        assert_eq!(guard.hold().unwrap().held.len(), 4);
    }

    #[test]
    fn one_that_came_back_has_not_left() {
        let mut now = Instant::now();
        let mut guard = guard(true, 1..=2);
        guard.take(now, set(1..=1), false, true);
        guard.take(now, set(1..=4), false, true);
        now += Duration::from_millis(50);
        guard.take(now, set(1..=2), false, true);
        assert_eq!((numbers(&guard).len(), guard.hold().is_none()), (2, true), "two of four left, not three of five");
    }

    #[test]
    fn of_a_confirmed_mass_those_go_that_our_own_checks_find_down() {
        let now = Instant::now();
        let mut guard = guard(true, 1..=10);
        guard.take(now, set([1, 2]), false, true);
        assert!(guard.wants_fresh(now + HOLD));
        guard.take(now + HOLD, set([1, 2]), true, true);
        let down = |address: SocketAddr| address < SocketAddr::from(([10, 0, 0, 5], 80));
        assert!(guard.settle(down));
        assert!(numbers(&guard).contains(&9) && !numbers(&guard).contains(&3));
    }

    #[test]
    fn without_a_leader_there_are_additions_but_no_removals() {
        let mut now = Instant::now();
        let mut guard = guard(false, [1, 2, 3]);
        assert!(guard.take(now, set([3, 4]), false, false));
        assert_eq!(numbers(&guard), [1, 2, 3, 4]);
        assert_eq!(guard.hold().unwrap().why, Why::NoLeader);
        assert!(guard.take(later(&mut now), set([2, 3, 4]), false, true), "a leader again");
        assert_eq!(numbers(&guard), [2, 3, 4]);
    }

    #[test]
    fn release_lets_what_is_held_go() {
        let now = Instant::now();
        let mut guard = guard(true, [1, 2]);
        guard.take(now, set([]), false, true);
        assert_eq!((guard.release(), guard.release()), (2, 0));
        assert!(guard.good().is_empty());
    }

    proptest! {
        /// Whatever the registry says in whatever order: who is named is never missing, and nobody is left only after
        /// a confirmed hold or when nobody ever was.
        #[test]
        fn the_last_one_never_goes_unconfirmed(answers in vec((vec(1..8_u8, 0..7), 0..3_000_u64, any::<bool>()), 1..40)) {
            let mut now = Instant::now();
            let mut guard = guard(false, []);
            let mut ever = false;
            for (said, pause, whole) in answers {
                now += Duration::from_millis(pause);
                let said = set(said);
                guard.take(now, said.clone(), false, whole);
                guard.settle(|_| true);
                ever |= !said.is_empty();
                prop_assert!(said.keys().all(|address| guard.good().contains_key(address)));
                prop_assert_eq!(guard.good().is_empty(), !ever);
                for address in guard.hold().iter().flat_map(|hold| &hold.held) {
                    prop_assert!(guard.good().contains_key(address) && !said.contains_key(address));
                }
            }
        }
    }
}
