//! Encoding: chunks of pages become frames in an image.
//!
//! ```text
//! caller: push ─▶ Queue ─▶ worker 1: fetch, find zeros, stage, stage, seal, place, write
//!         (waits            worker 2: the same with the next chunk
//!          when full)       …
//! before the freeze   Pipeline::prepare_encode   handles, open sink, head of the image, threads, buffers
//! frozen              begin, push, push, …       tables, then chunks
//! frozen, then held   finish                     index, trailers, footer, commit
//! any failure         abort, or drop             the image is gone
//!                     into_part                  or, once it was kept, stays as it is
//! ```

use std::sync::Arc;

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::StageError;

use crate::pages::{ChunkPlan, FetchPages, PageRun};
use crate::pipeline::bench::Bench;
use crate::pipeline::chain::Blueprint;
use crate::pipeline::crew::{Crew, Stop};
use crate::pipeline::error::causes;
use crate::pipeline::foreman::{Floor, Foreman};
use crate::pipeline::open::{self, Extent, Source};
use crate::pipeline::queue::Job;
use crate::pipeline::shift::{Opened, Shift};
use crate::pipeline::{Cancel, OpenImage, PipelineError, Place, Priority, Progress, Result};
use crate::sink::layout::{Header, VERSION, this_arch};
use crate::sink::{ImageMeta, Mark, TargetIdentity};
use crate::sys::{program, same_cpu};

/// What an encoder needs to know before the freeze.
pub struct EncodeSetup {
    /// Pid of the target, for the name of the image.
    pub pid: u32,
    /// Page size of the target, bytes.
    pub page_size: u32,
    /// Bytes of pages expected, at most; 0: unknown.
    pub expected_len_bytes: u64,
    /// Source of the pages.
    pub fetch: Arc<dyn FetchPages + Send + Sync>,
    /// Memory is given back while it is stored: the image is to be [kept](Encoder::keep).
    /// Only of a pipeline that [can do so](crate::pipeline::Pipeline::keeps_unfinished), and not
    /// done where [nobody else](Encoder::only_here) could read the image.
    pub keep: bool,
    /// Of the workers.
    pub priority: Priority,
    /// Stops the work.
    pub cancel: Cancel,
    /// Shows how far it is.
    pub progress: Arc<Progress>,
}

/// An open image that takes chunks. Dropping it removes the image, unless it is kept.
pub struct Encoder {
    // Dropped in this order: the foreman ends last, with the last reference to the handles.
    shift: Arc<Shift>,
    crew: Option<Crew>,
    foreman: Arc<Foreman>,
    blueprint: Blueprint,
    header: Header,
    locator: Option<String>,
    target: Option<TargetIdentity>,
    n_vmas: u64,
    next_index: u64,
    /// The image is committed or gone, or stays as it is.
    ended: bool,
    /// It was kept: what it holds may be in no other place.
    needed: bool,
    /// Held back until the next one comes: the last chunk must know that it is.
    held: Option<ChunkPlan>,
    only_here: Option<PipelineError>,
}

/// The work of an encoder, for a thread beside the one that pushes.
#[derive(Clone)]
pub(crate) struct Work {
    stop: Arc<Stop>,
    workers: Arc<[i32]>,
}

impl Work {
    /// Ends it: who waits in [`Encoder::push`] is told at once. A failure of before stays the
    /// first.
    pub(crate) fn end(&self, why: &'static str) {
        self.stop.fail(PipelineError::Ended(why));
    }

    /// Whether it has failed, or was ended or cancelled.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.check().is_err()
    }

    /// Keeps the workers off a CPU that others need more; `None`: off none.
    pub(crate) fn keep_off(&self, cpu: Option<usize>) {
        // Wherever they are, they work.
        if let Err(error) = same_cpu::keep_off(&self.workers, cpu) {
            tracing::debug!("the workers do not stay off CPU {cpu:?}: {error}");
        }
    }
}

/// See [`crate::pipeline::Pipeline::prepare_encode`].
pub(super) fn prepare(
    foreman: Foreman,
    blueprint: Blueprint,
    setup: EncodeSetup,
) -> Result<Encoder> {
    let header = header(&setup, blueprint.chunk_len)?;
    let (foreman, workers) = (Arc::new(foreman), blueprint.workers);
    let stop = Arc::new(Stop::new(setup.cancel.clone(), Arc::clone(foreman.calls())));
    let (priority, until) = (setup.priority, Arc::clone(&stop));
    let open = move |floor: &mut Floor| {
        let opened = Shift::open(floor.chain()?, setup, stop, &header, workers)?;
        let locator = opened.shift.store.0.sink_locator().ok();
        Ok((opened, locator))
    };
    let opened = foreman.run_until(&until, open);
    let (opened, locator) = opened.inspect_err(|_| open::forget_keys(&header.image_id))?;
    let Opened {
        shift,
        n_workers,
        only_here,
    } = opened;
    let mut encoder = Encoder {
        shift: Arc::clone(&shift),
        crew: None,
        foreman,
        ended: false,
        needed: false,
        blueprint,
        header,
        locator,
        target: None,
        n_vmas: 0,
        next_index: 0,
        held: None,
        only_here,
    };
    let (tools, work) = (Arc::clone(&shift), shift);
    // Buffers take its place.
    program::let_go();
    // From here on a failure drops the encoder, which removes the image.
    encoder.crew = Some(Crew::start(
        n_workers,
        priority,
        &Arc::clone(&work.stop),
        move || Bench::new(&tools.chain, &tools.common, 0, &tools.turnstiles),
        move |_, bench| work.work(bench),
    )?);
    Ok(encoder)
}

impl Encoder {
    /// The image's random identity.
    #[must_use]
    pub fn image_id(&self) -> [u8; 16] {
        self.header.image_id
    }

    /// Where the image will be found once it is committed, should this process die then;
    /// [`OpenImage::locator`] knows better. `None`: the sink tells only then.
    #[must_use]
    pub fn locator(&self) -> Option<&str> {
        self.locator.as_deref()
    }

    /// Why no other process could read the image, with what is recorded of it and the pipeline,
    /// if so: it must not be left to one.
    #[must_use]
    pub fn only_here(&self) -> Option<&PipelineError> {
        self.only_here.as_ref()
    }

    /// Gives the image up if no other process could read it.
    ///
    /// # Errors
    /// Why not.
    pub fn expect_elsewhere(mut self) -> Result<Self> {
        match self.only_here.take() {
            None => Ok(self),
            Some(reason) => Err(reason.after(self.end())),
        }
    }

    /// Writes who the target is and its VMA table. Once, before the first `push`.
    ///
    /// # Errors
    /// When the sink does not take it; the image is gone then.
    pub fn begin(&mut self, meta: ImageMeta) -> Result<()> {
        if self.target.is_some() {
            return Err(misuse("the encoder was begun twice"));
        }
        self.shift.check()?;
        let shift = Arc::clone(&self.shift);
        let target = meta.target.clone();
        self.n_vmas = meta.vmas.len() as u64;
        let stop = Arc::clone(&self.shift.stop);
        let written = self
            .foreman
            .run_until(&stop, move |_| shift.write_meta(&meta));
        written.map_err(|failure| self.shift.first(failure).after(self.end()))?;
        self.target = Some(target);
        Ok(())
    }

    /// Hands one chunk to the workers. Waits while they have enough to do.
    ///
    /// # Errors
    /// The first failure of any worker, as soon as it is known; the image is gone then, unless
    /// it was kept.
    pub fn push(&mut self, plan: ChunkPlan) -> Result<()> {
        if self.target.is_none() {
            return Err(misuse("a chunk was pushed before the encoder was begun"));
        }
        self.check_plan(&plan)?;
        let pushed = match self.held.replace(plan) {
            Some(before) => self.hand_out(before, false),
            None => self.shift.check(),
        };
        pushed.map_err(|failure| failure.after(self.end()))
    }

    /// Waits until the workers have taken all chunks that were pushed but the last, which may
    /// have to know that it is.
    ///
    /// # Errors
    /// As [`Encoder::push`].
    pub fn drain(&mut self) -> Result<()> {
        let drained = self.shift.queue.drain(&self.shift.stop);
        let drained = drained.or_else(|_| self.shift.stop.take());
        drained.map_err(|failure| failure.after(self.end()))
    }

    /// An empty vector for the runs of the next plan, with the capacity of one that the
    /// workers are done with: in steady state nothing is allocated per chunk.
    #[must_use]
    pub fn spare_runs(&mut self) -> Vec<PageRun> {
        self.shift.queue.spare()
    }

    /// Waits for the workers, finishes the image and commits it.
    ///
    /// # Errors
    /// Whatever failed; the image is gone then, unless it was kept.
    pub fn finish(&mut self) -> Result<OpenImage> {
        self.try_finish()
            .map_err(|failure| failure.after(self.end()))
    }

    /// Nothing was given back after all: the image goes again with whatever fails.
    pub fn is_not_needed(&mut self) {
        self.needed = false;
    }

    /// To be ended by another thread than the one that pushes.
    pub(crate) fn work(&self) -> Work {
        let workers = self.crew.as_ref().map(|crew| Arc::clone(crew.tids()));
        Work {
            stop: Arc::clone(&self.shift.stop),
            workers: workers.unwrap_or_default(),
        }
    }

    /// Up to where the image is written.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.shift.mark()
    }

    /// Number of chunks that were pushed.
    #[must_use]
    pub fn n_pushed(&self) -> u64 {
        self.next_index + u64::from(self.held.is_some())
    }

    /// Lets the image be found as far as it is written, once it was begun. From now on it stays,
    /// whatever fails: memory may be given back of which it has the bytes up to the
    /// [mark](Encoder::mark).
    ///
    /// # Errors
    /// When the sink refuses; the image is gone then.
    pub fn keep(&mut self) -> Result<()> {
        let (shift, stop) = (Arc::clone(&self.shift), Arc::clone(&self.shift.stop));
        let kept = self.foreman.run_until(&stop, move |_| shift.keep());
        let locator = kept.map_err(|failure| self.shift.first(failure).after(self.end()))?;
        let retained = open::retain_keys(&self.header.image_id);
        retained.map_err(|failure| failure.after(self.end()))?;
        (self.locator, self.needed) = (Some(locator), true);
        Ok(())
    }

    /// Gives up an image that was kept, and opens what is written of it up to `mark`, which is
    /// one that [`Encoder::mark`] answered.
    ///
    /// # Errors
    /// As [`crate::pipeline::Pipeline::open_part`]; the image stays.
    pub fn into_part(mut self, mark: Mark) -> Result<OpenImage> {
        self.end()?;
        let (foreman, blueprint) = (Arc::clone(&self.foreman), self.blueprint.clone());
        OpenImage::open(foreman, blueprint, Source::Sink, Extent::Part(mark))
    }

    /// Stops the workers and removes the image.
    ///
    /// # Errors
    /// When something of the image stays behind; says what.
    pub fn abort(mut self) -> Result<()> {
        self.needed = false;
        self.end()
    }

    fn try_finish(&mut self) -> Result<OpenImage> {
        let Some(target) = self.target.take() else {
            return Err(misuse("the image has no target: the encoder was not begun"));
        };
        if let Some(last) = self.held.take() {
            self.hand_out(last, true)?;
        }
        self.shift.queue.close();
        self.leave_crew();
        self.shift.check()?;
        let shift = Arc::clone(&self.shift);
        let stop = Arc::clone(&self.shift.stop);
        let footer = self.foreman.run_until(&stop, move |_| shift.finish());
        let footer = footer.map_err(|failure| self.shift.first(failure))?;
        open::retain_keys(&self.header.image_id)?;
        self.ended = true;
        Ok(OpenImage::written(
            Arc::clone(&self.foreman),
            self.blueprint.clone(),
            &self.header,
            footer,
            target,
            self.n_vmas,
            self.only_here.is_some(),
        ))
    }

    fn hand_out(&mut self, plan: ChunkPlan, last: bool) -> Result<()> {
        let job = Job {
            index: self.next_index,
            last,
            plan,
        };
        self.next_index += 1;
        self.shift
            .queue
            .push(job, &self.shift.stop)
            .or_else(|_| self.shift.stop.take())
    }

    /// A plan that breaks these rules would be an image that nobody can read.
    fn check_plan(&self, plan: &ChunkPlan) -> Result<()> {
        let (page, mut end) = (u64::from(self.header.page_size), 0);
        for run in &plan.runs {
            let fits = run.len_bytes > 0 && run.len_bytes % page == 0 && run.addr.0 % page == 0;
            if !fits || run.addr.0 < end || run.addr.0.checked_add(run.len_bytes).is_none() {
                return Err(misuse(&format!(
                    "the run {run} of a chunk is empty, askew or out of order"
                )));
            }
            end = run.end().0;
        }
        let len = plan.len_bytes();
        if len == 0 || len > u64::from(self.header.chunk_len) {
            return Err(misuse(&format!(
                "a chunk of {len} bytes is not within 1..={}",
                self.header.chunk_len
            )));
        }
        Ok(())
    }

    /// Waits for the workers; see [`Crew::leave`].
    fn leave_crew(&mut self) {
        if let Some(crew) = self.crew.take() {
            crew.leave(&self.shift.stop);
        }
    }

    /// Stops the workers and removes the image, once; one that was kept stays.
    fn end(&mut self) -> Result<()> {
        self.shift
            .stop
            .fail(PipelineError::Ended("the image was given up"));
        self.shift.queue.close();
        self.leave_crew();
        if std::mem::replace(&mut self.ended, true) || self.needed {
            return Ok(());
        }
        open::forget_keys(&self.header.image_id);
        match open::remove_image(&self.foreman) {
            // Not a failure beside the one that stopped the work: as a rule the image has
            // no name yet, and goes with this process at the latest.
            Err(PipelineError::Stalled { .. }) => {
                tracing::warn!("the sink does not come back; the image goes when it does");
                Ok(())
            }
            removed => removed,
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(
                "an image that was given up stays behind: {}",
                causes(&error)
            );
        }
    }
}

fn header(setup: &EncodeSetup, chunk_len: u32) -> Result<Header> {
    let mut image_id = [0; 16];
    rustix::rand::getrandom(&mut image_id[..], rustix::rand::GetRandomFlags::empty()).map_err(
        |e| PipelineError::Resource {
            doing: "get random bytes".into(),
            source: e.into(),
        },
    )?;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let header = Header {
        version: VERSION,
        incompatible: 0,
        compatible: 0,
        image_id,
        arch: this_arch(),
        page_size: setup.page_size,
        chunk_len,
        // A clock before 1970 is one that was never set.
        created: since.map_or(0, |since| since.as_secs()),
    };
    header.check().map_err(|what| PipelineError::Config {
        what,
        hint: "set the chunk length to a multiple of the page size".into(),
    })?;
    Ok(header)
}

/// The caller broke the order of calls: a defect of memcr, told as an error because the
/// target is frozen.
fn misuse(what: &str) -> PipelineError {
    PipelineError::Plugin {
        stage: "memcr".into(),
        doing: Place::Step("defect"),
        source: Box::new(StageError::new(code::INTERNAL, what)),
    }
}
