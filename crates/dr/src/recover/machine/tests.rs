//! A world that can be struck at every write of the journal, before and after every effect: whatever is left, going on ends in
//! a named state, nothing that must not happen twice does, and the old data is there until the new one was found right.

use std::cell::RefCell;
use std::rc::Rc;

use pgark_testkit::Scratch;

use super::*;

/// What outlives a process.
#[derive(Default)]
struct World {
    /// So many more things happen before the power goes.
    fuse: Option<u32>,
    counts: BTreeMap<&'static str, u32>,
    app_runs: bool,
    old_there: bool,
    new_parts: u32,
    found_right: bool,
    points_to_new: bool,
    told: u32,
}

impl World {
    fn burn(&mut self) -> Result<()> {
        match &mut self.fuse {
            None => Ok(()),
            Some(0) => Err(EngineError::failed("E-DEAD", "the power is off", "")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn happens(&mut self, step: &'static str, effect: impl FnOnce(&mut World)) -> Result<()> {
        self.burn()?;
        *self.counts.entry(step).or_default() += 1;
        effect(self);
        assert!(self.old_there || self.found_right, "the old data went before the new one was found right");
        self.burn()
    }
}

type Shared = Rc<RefCell<World>>;

struct Fused {
    journal: Journal,
    world: Shared,
}

impl Log for Fused {
    fn append(&mut self, at: Timestamp, event: Event) -> Result<()> {
        self.world.borrow_mut().burn()?;
        self.journal.append(at, event)?;
        self.world.borrow_mut().burn()
    }

    fn lines(&self) -> &[Line] {
        self.journal.lines()
    }
}

struct Fake {
    name: &'static str,
    world: Shared,
    fails: bool,
}

impl Step for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn what(&self) -> String {
        self.name.into()
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn act(&mut self, _: &At<'_>) -> Result<Value> {
        let name = self.name;
        let mut world = self.world.borrow_mut();
        if self.fails {
            world.burn()?;
            return Err(EngineError::failed("E-FAKE", "as it was told to", ""));
        }
        match name {
            "stop" => world.happens(name, |w| w.app_runs = false)?,
            "restore" => {
                assert_eq!(world.new_parts, 0, "over the remains of another");
                world.happens(name, |w| w.new_parts += 1)?;
                world.happens(name, |w| w.new_parts += 1)?;
            }
            "validate" => world.happens(name, |w| w.found_right = w.new_parts == 2)?,
            "repoint" => world.happens(name, |w| w.points_to_new = true)?,
            "start" => world.happens(name, |w| w.app_runs = true)?,
            "drop old" => world.happens(name, |w| w.old_there = false)?,
            "notify" => world.happens(name, |w| w.told += 1)?,
            _ => world.happens(name, |_| {})?,
        }
        Ok(Value::Null)
    }

    fn check(&mut self, _: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        self.world.borrow_mut().burn()?;
        let world = self.world.borrow();
        let took = |is: bool| if is { Effect::Took(Value::Null) } else { Effect::None };
        Ok(match self.name {
            "stop" => took(!world.app_runs),
            "restore" if world.new_parts == 1 => Effect::Partly,
            "restore" => took(world.new_parts == 2),
            "validate" => took(world.found_right),
            "repoint" => took(world.points_to_new),
            "start" => took(world.app_runs),
            "drop old" => took(!world.old_there),
            // Nobody can see whether it was done.
            "once" | "notify" if acted.is_none() => Effect::Unknown("nobody can see it".into()),
            _ => took(acted.is_some()),
        })
    }

    fn goes_back(&self, failure: &Failure, _: bool) -> bool {
        match self.name {
            "repoint" => ["start", "smoke"].contains(&failure.step.as_str()) || failure.is_abandoned(),
            "start" => failure.step == "smoke" || failure.is_abandoned(),
            "restore" => failure.step == "restore",
            _ => false,
        }
    }

    fn undo(&mut self, _: &At<'_>) -> Result<Value> {
        let mut world = self.world.borrow_mut();
        world.burn()?;
        match self.name {
            "repoint" => world.points_to_new = false,
            "start" => world.app_runs = false,
            "restore" => world.new_parts = 0,
            other => panic!("{other} has no way back"),
        }
        world.burn()?;
        Ok(Value::Null)
    }

    fn state(&self) -> State {
        match self.name {
            "preflight" => State::Refused,
            "stop" => State::NotStopped,
            "start" | "smoke" => State::RolledBack,
            _ => State::Halted,
        }
    }
}

const STEPS: [&str; 9] = ["preflight", "stop", "restore", "validate", "repoint", "once", "start", "smoke", "drop old"];

struct Place {
    dir: Scratch,
    world: Shared,
    failing: Option<&'static str>,
}

impl Place {
    fn new(failing: Option<&'static str>) -> Place {
        let world = World { app_runs: true, old_there: true, ..World::default() };
        Place { dir: Scratch::new("machine"), world: Rc::new(RefCell::new(world)), failing }
    }

    /// A process that lives until its fuse has burnt down.
    fn process(&self, fuse: Option<u32>, wish: Wish) -> Result<Ended> {
        self.world.borrow_mut().fuse = fuse;
        let journal = Journal::open(&self.dir.path().join("journal"))?;
        let mut log = Fused { journal, world: self.world.clone() };
        let fake = |name: &'static str| -> Box<dyn Step> {
            Box::new(Fake { name, world: self.world.clone(), fails: self.failing == Some(name) })
        };
        let steps = STEPS.into_iter().map(fake).collect();
        let last = vec![fake("notify")];
        let ctx = Ctx::silent();
        let ended = Machine { log: &mut log, ctx: &ctx, steps, last }.run(wish);
        // What a dead process made of its death is not seen by anybody.
        if self.world.borrow().fuse == Some(0) {
            return Err(EngineError::failed("E-DEAD", "the power is off", ""));
        }
        ended
    }

    fn lines(&self) -> Vec<Line> {
        Journal::look(&self.dir.path().join("journal")).expect("a journal")
    }
}

fn expected(failing: Option<&str>) -> State {
    match failing {
        None => State::Restored,
        Some("preflight") => State::Refused,
        Some("stop") => State::NotStopped,
        Some("start" | "smoke") => State::RolledBack,
        Some(_) => State::Halted,
    }
}

fn assert_sound(place: &Place, ended: &Ended, what: &str) {
    let world = place.world.borrow();
    let unknown = ended.failure.as_ref().is_some_and(|f| f.code == "E-RECOVER-UNKNOWN");
    let wanted = if unknown { State::Halted } else { expected(place.failing) };
    assert_eq!(ended.state, wanted, "{what}: {ended:?}");
    for once in ["once", "notify"] {
        assert!(world.counts.get(once).is_none_or(|n| *n <= 1), "{what}: {once} twice");
    }
    match ended.state {
        State::Restored => assert!(world.app_runs && world.found_right && !world.old_there, "{what}"),
        State::RolledBack => assert!(!world.app_runs && !world.points_to_new && world.old_there, "{what}"),
        State::Halted => assert!(!world.app_runs && world.old_there, "{what}"),
        State::NotStopped | State::Refused => assert!(world.app_runs && world.new_parts == 0, "{what}"),
        other => panic!("{what}: {other:?}"),
    }
    let ends = place.lines().iter().filter(|l| matches!(l.event, Event::Ended { .. })).count();
    assert_eq!(ends, 1, "{what}");
}

fn failures() -> impl Iterator<Item = Option<&'static str>> {
    [None].into_iter().chain(STEPS.into_iter().filter(|s| *s != "drop old").map(Some))
}

#[test]
fn struck_at_every_point_it_ends_in_a_named_state() {
    for failing in failures() {
        let mut points = 0;
        for fuse in 1.. {
            let place = Place::new(failing);
            let what = format!("{failing:?} struck at {fuse}");
            match place.process(Some(fuse), Wish::GoOn) {
                Ok(ended) => {
                    assert_sound(&place, &ended, &what);
                    break;
                }
                Err(_) => {
                    points += 1;
                    let ended = place.process(None, Wish::GoOn).unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert_sound(&place, &ended, &what);
                    let lines = place.lines().len();
                    place.process(None, Wish::GoOn).expect("what has ended stays so");
                    assert_eq!(place.lines().len(), lines, "{what}");
                }
            }
        }
        assert!(points > 8, "{failing:?}: only {points} points");
    }
}

#[test]
fn struck_again_and_again_it_ends_too() {
    for failing in [None, Some("smoke"), Some("validate")] {
        // With less, it would load, remove and load again for ever.
        for each in 15..25 {
            let place = Place::new(failing);
            let ended = (0..100).find_map(|_| place.process(Some(each), Wish::GoOn).ok());
            assert_sound(&place, &ended.expect("it gets somewhere"), &format!("{failing:?} every {each}"));
        }
    }
}

#[test]
fn given_up_it_is_taken_back() {
    for fuse in 1..1000 {
        let place = Place::new(None);
        if place.process(Some(fuse), Wish::GoOn).is_ok() {
            return;
        }
        let (before, old) = (place.lines(), place.world.borrow().old_there);
        let ended = place.process(None, Wish::Abandon).expect("ends");
        let world = place.world.borrow();
        if before.iter().any(|l| matches!(&l.event, Event::Ended { .. })) {
            continue;
        }
        // Of what is done to its end, nothing can be given up.
        if before.iter().any(|l| matches!(&l.event, Event::Done { step, .. } if step == "drop old")) {
            assert_eq!(ended.state, State::Restored, "{fuse}");
            continue;
        }
        assert_eq!(ended.state, State::Abandoned, "{fuse}: {before:?}");
        assert!(!world.points_to_new && world.old_there == old, "{fuse}");
        assert!(world.counts.get("once").is_none_or(|n| *n <= 1), "{fuse}");
    }
    panic!("it never came to its end");
}

#[test]
fn what_hangs_is_told_to_stop_at_its_deadline() {
    let ctx = Ctx::silent();
    let hangs = |ctx: &Ctx| -> Result<()> {
        loop {
            ctx.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let error = within(&ctx, Duration::from_millis(100), hangs).expect_err("too long");
    assert_eq!(error.code(), "E-RECOVER-DEADLINE");
    assert!(within(&ctx, Duration::from_secs(60), |_| Ok(7)).is_ok_and(|n| n == 7));
    ctx.cancel_flag().store(true, Ordering::Relaxed);
    let dies_of_it = |ctx: &Ctx| hangs(ctx).map_err(|_| EngineError::failed("E-KILLED", "its program was killed", ""));
    for error in [within(&ctx, Duration::from_secs(60), hangs), within(&ctx, Duration::from_secs(60), dies_of_it)] {
        assert_eq!(error.expect_err("cancelled").code(), "E-CANCELLED");
    }
}
