//! The server: one thread that waits for everything at once and never for one thing.
//!
//! ```text
//!   listeners ─▶ connections ─▶ requests ─▶ ┌──────┐ ─▶ start, tell, stop ─▶ staff (children)
//!                    ▲                      │ desk │
//!                    └────── answers ◀───── └──────┘ ◀─ news, ends ◀──────── staff, targets
//! ```
//!
//! | file | what |
//! |---|---|
//! | `backlog` | whose turn it is to be served |
//! | `requests` | what a client asks for, whether it may, and how it is to be done |
//! | `staff` | the children: started, heard, reaped |
//! | `watch` | parked targets, and journals that others have left |
//! | `ending` | what becomes of everything when the daemon is told to end |
//! | `denials` | what is said of those who are denied something |
//! | `waiting` | who waits for which answer, and until when |

mod backlog;
mod denials;
mod ending;
mod requests;
mod staff;
mod waiting;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;

use memcr_wire::Subject;

use super::child::{Checkpoint, Home};
use super::connection::{Connection, Now};
use super::desk::{Desk, Effect};
use super::listen::Listener;
use super::metrics::Metrics;
use super::peer::Peer;
use super::poller::{Happened, Poller, Source};
use super::settings::Settings;
use crate::cli::failure::Failure;
use crate::cli::signals;
use crate::pipeline::causes;
use crate::session::journal::StateDir;
use backlog::Backlog;
use denials::Denials;
use ending::Ending;
pub(super) use staff::STOP;
use staff::Staff;
use waiting::Waiting;
use watch::Watch;

/// How often is looked at what tells nothing by itself: deadlines, signals that are pending
/// for parked targets, journals that others work on.
const TICK: Duration = Duration::from_millis(200);

/// How long clients are served before everything else that has happened meanwhile is looked at.
const SLICE: Duration = Duration::from_millis(10);

/// How many connections there may be: of all, and of one user who is not root.
const MAX_CONNECTIONS: usize = 1024;
const MAX_CONNECTIONS_OF_ONE: usize = 64;

/// The daemon at work.
pub(super) struct Server {
    home: Home,
    settings: Settings,
    state_dir: StateDir,
    poller: Poller,
    signals: SignalFd,
    listeners: Vec<Listener>,
    /// Nobody is let in before that: there is no room for anybody.
    closed_until: Option<Instant>,
    /// It was said that there is no room, which there was not since.
    has_said_full: bool,
    connections: BTreeMap<u64, Connection>,
    last_connection: u64,
    backlog: Backlog,
    denials: Denials,
    desk: Desk,
    staff: Staff,
    waiting: Waiting,
    watch: Watch,
    metrics: Metrics,
    ending: Ending,
    started: Instant,
}

impl Server {
    /// With nobody to listen to yet.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(home: Home, settings: Settings, state_dir: StateDir) -> io::Result<Self> {
        let poller = Poller::new()?;
        // Children inherit the mask, and listen to what they need.
        let signals = signals::listen()?;
        poller.add(&signals, Source::Signals)?;
        Ok(Self {
            desk: Desk::new(settings.limits),
            metrics: Metrics::new(settings.metrics.clone()),
            ending: Ending::new(settings.on_stop),
            home,
            settings,
            state_dir,
            poller,
            signals,
            listeners: Vec::new(),
            closed_until: None,
            has_said_full: false,
            connections: BTreeMap::new(),
            last_connection: 0,
            backlog: Backlog::default(),
            denials: Denials::default(),
            staff: Staff::default(),
            waiting: Waiting::default(),
            watch: Watch::default(),
            started: Instant::now(),
        })
    }

    /// Listens there too.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn listen(&mut self, listener: Listener) -> io::Result<()> {
        let at = self.listeners.len() as u32;
        self.poller.add(&listener, Source::Listener(at))?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Serves until it is told to end, and nothing is left to do.
    ///
    /// # Errors
    /// Waiting itself fails; sessions then end by themselves, with their targets held.
    pub(super) fn run(&mut self) -> io::Result<()> {
        while !self.ending.is_over() {
            self.turn()?;
        }
        let status = || self.desk.status();
        self.metrics.write_now(status);
        Ok(())
    }

    /// Waits for something to happen, and does what follows from it.
    fn turn(&mut self) -> io::Result<()> {
        self.carry_out();
        self.go_on_ending(Instant::now());
        self.carry_out();
        if self.ending.is_over() {
            return Ok(());
        }
        for happened in self.poller.wait(self.patience())? {
            self.happened(happened);
            self.carry_out();
        }
        self.serve_some();
        self.tick(Instant::now());
        self.carry_out();
        Ok(())
    }

    fn patience(&self) -> Duration {
        if !self.backlog.is_empty() {
            return Duration::ZERO;
        }
        let is_quiet = self.connections.is_empty()
            && !self.ending.has_begun()
            && self.closed_until.is_none()
            && self.denials.is_empty()
            && !self.desk.is_working()
            && self.watch.is_quiet(&self.desk);
        if is_quiet {
            self.settings.heartbeat
        } else {
            TICK.min(self.settings.heartbeat)
        }
    }

    fn happened(&mut self, happened: Happened) {
        let now = Instant::now();
        match happened.source {
            Source::Listener(at) => self.accept(at as usize, now),
            Source::Signals => self.told_to_end(),
            Source::Connection(number) => self.client(number, happened.is_over),
            Source::Link(key) => self.hear(key, now),
            Source::Child(key) => self.child_ended(key, now),
            Source::Target(pid) => {
                self.watch.unwatch(&self.poller, pid);
                self.desk.has_ended(pid, now);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        if self.closed_until.is_some_and(|until| until <= now) {
            self.closed_until = None;
            self.open_doors(true);
        }
        let late: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, it)| it.deadline().is_some_and(|end| end <= now))
            .map(|(&number, _)| number)
            .collect();
        for number in late {
            tracing::debug!(number, "a client was too slow");
            self.close(number);
        }
        for (waiter, answer) in self.waiting.late(now) {
            self.answer(waiter, answer, now);
        }
        self.denials.sum_up(now);
        self.desk.pump(now);
        self.watch_sessions(now);
        self.settings.beat(now);
        let status = || self.desk.status();
        self.metrics.write(now, status);
    }

    /// Does what the desk says.
    fn carry_out(&mut self) {
        while let Some(effect) = self.desk.next_effect() {
            let now = Instant::now();
            match effect {
                Effect::Start { key, task } => self.start(key, &task, now),
                Effect::Tell { key, order } => self.staff.tell(key, &order),
                Effect::Stop { key } => self.staff.stop(key),
                Effect::Answer { waiter, answer } => self.answer(waiter, answer, now),
                Effect::Look { group } => self.look_at_group(&group),
            }
        }
    }

    fn accept(&mut self, at: usize, now: Instant) {
        let Some(listener) = self.listeners.get(at) else {
            return;
        };
        let stream = match listener.accept() {
            Ok(Some(stream)) => stream,
            Ok(None) => return,
            Err(error) => return self.is_full(&error, now),
        };
        self.has_said_full = false;
        self.desk.counters().connections += 1;
        let admitted = self.admit(listener, &stream);
        let peer = match admitted {
            Ok(peer) => peer,
            Err(why) => {
                self.desk.counters().connections_refused += 1;
                if self.denials.note(None, now) {
                    tracing::warn!("a connection was refused: {why}");
                }
                return;
            }
        };
        self.last_connection += 1;
        let number = self.last_connection;
        if let Err(error) = self.poller.add(&stream, Source::Connection(number)) {
            return tracing::warn!("cannot wait for a connection: {error}");
        }
        let connection = Connection::new(stream, peer, now);
        self.connections.insert(number, connection);
    }

    /// Descriptors or memory are short. Whoever waits at the door would be told of again at
    /// once: nobody is, up to the next tick.
    fn is_full(&mut self, error: &io::Error, now: Instant) {
        if !std::mem::replace(&mut self.has_said_full, true) {
            tracing::warn!("cannot take a connection: {error}");
        }
        self.closed_until = Some(now + TICK);
        self.open_doors(false);
    }

    fn open_doors(&self, open: bool) {
        for (at, listener) in (0..).zip(&self.listeners) {
            let source = Source::Listener(at);
            if let Err(error) = self.poller.want(listener, source, open, false) {
                tracing::error!("cannot wait for clients: {error}");
            }
        }
    }

    /// Who has connected, if they are to be served.
    fn admit(&self, listener: &Listener, stream: &OwnedFd) -> Result<Peer, String> {
        let peer = listener.peer(stream).map_err(|error| causes(&error))?;
        let welcome = self.settings.rules.welcome(&peer);
        welcome.map_err(|denied| denied.to_string())?;
        self.expect_room(peer.uid())?;
        Ok(peer)
    }

    /// Nobody takes the places of all.
    fn expect_room(&self, uid: u32) -> Result<(), String> {
        let n_own = self.connections.values().filter(|it| it.peer.uid() == uid);
        if uid != 0 && n_own.count() >= MAX_CONNECTIONS_OF_ONE {
            return Err(format!("user {uid} has {MAX_CONNECTIONS_OF_ONE} already"));
        }
        // Places that only root can take.
        let max = MAX_CONNECTIONS - if uid == 0 { 0 } else { MAX_CONNECTIONS_OF_ONE };
        if self.connections.len() >= max {
            return Err(format!("there are {} already", self.connections.len()));
        }
        Ok(())
    }

    /// Something has happened to a connection: it is served when it is its turn.
    fn client(&mut self, number: u64, is_over: bool) {
        if let Some(connection) = self.connections.get_mut(&number) {
            if is_over {
                connection.hang_up();
                self.poller.remove(connection.as_fd());
            }
            self.backlog.add(connection.peer.uid(), number);
        }
    }

    /// Serves those whose turn it is, for a moment.
    fn serve_some(&mut self) {
        let begin = Instant::now();
        while let Some(number) = self.backlog.next() {
            self.serve(number, Instant::now());
            self.carry_out();
            if begin.elapsed() >= SLICE {
                return;
            }
        }
    }

    /// Does some of what a client asks for, and sends what there is for it.
    fn serve(&mut self, number: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let incoming = connection.read(now);
        let peer = connection.peer.clone();
        connection.serving(true);
        for request in incoming {
            self.request(number, &peer, request, now);
        }
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.serving(false);
        }
        self.send(number, now);
        // What was sent before the end counts: who hangs up undoes nothing.
        if self
            .connections
            .get(&number)
            .is_some_and(Connection::is_over)
        {
            self.close(number);
        }
    }

    /// Sends what there is for a client, and waits for what is next.
    fn send(&mut self, number: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        match connection.write(now) {
            Now::Open => {}
            Now::Closed => return self.close(number),
            Now::HungUp => connection.hang_up(),
        }
        if connection.has_more() {
            self.backlog.add(connection.peer.uid(), number);
        }
        if connection.has_hung_up() {
            return self.poller.remove(connection.as_fd());
        }
        let (reads, writes) = connection.wants();
        let source = Source::Connection(number);
        let wanted = self.poller.want(connection.as_fd(), source, reads, writes);
        if let Err(error) = wanted {
            tracing::warn!("cannot wait for a connection: {error}");
            self.close(number);
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.poller.remove(connection.as_fd());
        }
    }

    fn answer(&mut self, waiter: u64, answer: serde_json::Value, now: Instant) {
        let Some((number, bytes)) = self.waiting.answer(waiter, answer) else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.answer(&bytes, now);
            self.send(number, now);
        }
    }
}

/// For one request of our own.
impl Server {
    /// Checkpoints `subject`, which has this name as a group; answers who waits for it.
    ///
    /// # Errors
    /// It cannot be told who that is.
    pub(super) fn checkpoint_own(
        &mut self,
        subject: &Subject,
        name: &str,
        template: Checkpoint,
        now: Instant,
    ) -> Result<u64, Failure> {
        let pids = self.members_of(subject)?;
        let waiter = self.waiting.add_inside();
        self.desk
            .checkpoint_group(name, &pids, template, waiter, now);
        Ok(waiter)
    }

    /// Nobody else is served.
    pub(super) fn be_alone(&mut self) {
        self.desk.be_alone();
    }

    /// Restores all that is held under this name; answers who waits for it.
    pub(super) fn restore_own(&mut self, name: &str, now: Instant) -> u64 {
        self.adopt_group(name, now);
        let waiter = self.waiting.add_inside();
        self.desk.restore_group(name, waiter, now);
        waiter
    }

    /// Works until that is answered and nothing is left to do. A signal stops a checkpoint.
    ///
    /// # Errors
    /// Waiting itself fails.
    pub(super) fn run_for(&mut self, waiter: u64) -> io::Result<serde_json::Value> {
        let mut answer = None;
        while !self.ending.is_over() {
            self.carry_out();
            if answer.is_none() {
                answer = self.waiting.take(waiter);
                if answer.is_some() && !self.ending.has_begun() {
                    self.begin_end();
                }
            }
            self.turn()?;
        }
        answer.ok_or_else(|| io::Error::other("it was ended twice before it was done"))
    }
}
