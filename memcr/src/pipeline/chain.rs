//! A pipeline: what the user asked for, and what it became.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use memcr_plugin_api::abi::capability;

use crate::pipeline::calls::{Calls, DEFAULT_STALL_LIMIT, Watch, Who};
use crate::pipeline::foreman::Foreman;
use crate::pipeline::links::{Chain, Watched, sink_error};
use crate::pipeline::open::{Extent, Source, image_error};
use crate::pipeline::orphan::portable;
use crate::pipeline::{
    EncodeSetup, Encoder, LinkDescription, OpenImage, PipelineError, Result, SearchPath, encode,
};
use crate::sink::layout::limit;
use crate::sink::recipe::RecipeStage;
use crate::sink::{FileImage, ImageError, ImageReader, Mark, ReadImage};

/// Default length of a chunk, bytes: large enough to amortise a read and a frame, small
/// enough to stay in a core's L2 cache through all stages.
pub const DEFAULT_CHUNK_LEN: u64 = 256 * 1024;

/// What the buffers of all workers may take together when the user names no number of
/// workers, bytes. Half of what memcr promises to stay below (16 MiB): the other half is
/// for the program, its plugins' libraries, and stacks.
const BUFFER_BUDGET: usize = 8 << 20;

/// What a compressing stage keeps per worker, bytes: zstd takes most, at its default
/// level 300 KiB to encode and 500 KiB to decode a chunk of 256 KiB (measured). A stage does
/// not tell, and at higher levels of zstd it is more than what memcr promises: see its README.
const COMPRESSOR_LEN: usize = 512 << 10;

/// One stage as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageSpec {
    /// The word the user wrote (alias or plugin name); messages use it.
    pub alias: String,
    /// Plugin name, or a path with a `/`.
    pub plugin: String,
    /// Parameters; a later value of a key replaces an earlier one.
    pub params: Vec<(String, String)>,
}

/// A pipeline as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineSpec {
    /// In encode order; the last one is the sink.
    pub stages: Vec<StageSpec>,
    /// Number of workers; `None`: one per CPU, as far as the memory budget goes.
    pub workers: Option<NonZeroUsize>,
    /// Longest chunk, bytes; see [`DEFAULT_CHUNK_LEN`].
    pub chunk_len_bytes: u64,
    /// How long nothing has to come back from any stage, the sink or the target before
    /// the work is given up; `None`: for ever. See [`DEFAULT_STALL_LIMIT`].
    pub stall_limit: Option<Duration>,
}

impl Default for PipelineSpec {
    fn default() -> Self {
        Self {
            stages: Vec::new(),
            workers: None,
            chunk_len_bytes: DEFAULT_CHUNK_LEN,
            stall_limit: Some(DEFAULT_STALL_LIMIT),
        }
    }
}

/// How many workers: what the user said, or as many as CPUs and memory allow.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Workers(pub(super) Option<NonZeroUsize>);

impl Workers {
    /// The number for benches with two buffers of `buffer_len` bytes.
    pub(super) fn number(self, chain: &Chain, buffer_len: usize) -> usize {
        let compressors = chain
            .links
            .iter()
            .filter(|link| link.can(capability::COMPRESSES))
            .count();
        let each = 2 * buffer_len + compressors * COMPRESSOR_LEN;
        let fit = (BUFFER_BUDGET / each).max(1);
        // A machine that does not tell has one CPU at least.
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.0.map_or(cpus.min(fit), NonZeroUsize::get)
    }
}

/// What is known of a pipeline without asking its handles.
#[derive(Debug, Clone)]
pub(super) struct Blueprint {
    pub(super) links: Vec<LinkDescription>,
    pub(super) workers: Workers,
    pub(super) chunk_len: u32,
    /// Or-ed capabilities of all stages.
    capabilities: u64,
    is_serial: bool,
}

/// Loaded, ordered and checked stages with their handles. All calls into plugins are
/// made on threads of its own, never on the caller's.
pub struct Pipeline {
    pub(super) foreman: Foreman,
    blueprint: Blueprint,
    portable: PipelineSpec,
    is_portable: bool,
}

impl Pipeline {
    /// Loads the plugins, checks their order and parameters, and makes their handles.
    ///
    /// # Errors
    /// [`PipelineError::Load`], `Config`, `Plugin`.
    pub fn load(spec: &PipelineSpec, search: &SearchPath) -> Result<Self> {
        let chunk_len = chunk_len(spec.chunk_len_bytes)?;
        let (stages, search) = (spec.stages.clone(), search.clone());
        let calls = Arc::new(Calls::new(spec.stall_limit));
        let foreman = Foreman::start(Arc::clone(&calls))?;
        let mut pipeline = Self::build(foreman, Workers(spec.workers), chunk_len, move || {
            Chain::load(&stages, &search, &calls)
        })?;
        pipeline.portable = pipeline.make_portable(spec)?;
        let n_params = |spec: &PipelineSpec| {
            spec.stages
                .iter()
                .map(|stage| stage.params.len())
                .sum::<usize>()
        };
        pipeline.is_portable = n_params(&pipeline.portable) == n_params(spec);
        Ok(pipeline)
    }

    /// Loads one stage with its parameters as a pipeline would, and lets it go: whether it
    /// can work is to be known.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn try_stage(stage: &StageSpec, search: &SearchPath) -> Result<()> {
        let (stage, search) = (stage.clone(), search.clone());
        let calls = Arc::new(Calls::new(Some(DEFAULT_STALL_LIMIT)));
        let foreman = Foreman::start(Arc::clone(&calls))?;
        let chunk_len = chunk_len(DEFAULT_CHUNK_LEN)?;
        Self::build(foreman, Workers(None), chunk_len, move || {
            Chain::load_alone(&stage, &search, &calls)
        })
        .map(drop)
    }

    fn build(
        foreman: Foreman,
        workers: Workers,
        chunk_len: u32,
        load: impl FnOnce() -> Result<Chain> + Send + 'static,
    ) -> Result<Self> {
        let (links, capabilities, is_serial) = foreman.run(move |floor| {
            let chain = Arc::new(load()?);
            let bits = (0..64)
                .map(|bit| 1 << bit)
                .filter(|&bit| chain.any(bit))
                .sum();
            let (links, is_serial) = (chain.describe(), chain.is_serial());
            floor.chain = Some(chain);
            Ok((links, bits, is_serial))
        })?;
        Ok(Self {
            foreman,
            blueprint: Blueprint {
                links,
                workers,
                chunk_len,
                capabilities,
                is_serial,
            },
            portable: PipelineSpec::default(),
            is_portable: false,
        })
    }

    fn make_portable(&self, spec: &PipelineSpec) -> Result<PipelineSpec> {
        let stages = spec.stages.clone();
        let stages = self.foreman.with_chain(move |chain| {
            let links = chain.links.iter().chain(&chain.sink).zip(&stages);
            let portable = links.map(|(link, spec)| portable(spec, link.handle.description()));
            Ok(portable.collect())
        })?;
        Ok(PipelineSpec {
            stages,
            ..spec.clone()
        })
    }

    /// Its stages, in encode order.
    #[must_use]
    pub fn describe(&self) -> &[LinkDescription] {
        &self.blueprint.links
    }

    /// What another memcr, started elsewhere, loads the same pipeline with. Empty if it
    /// was not loaded with [`Pipeline::load`].
    #[must_use]
    pub fn portable_spec(&self) -> &PipelineSpec {
        &self.portable
    }

    /// Another memcr can load it with no more than [`Pipeline::portable_spec`]: no parameter is
    /// a descriptor of this process.
    #[must_use]
    pub fn is_portable(&self) -> bool {
        self.is_portable
    }

    /// Some stage hides the bytes from a reader of the image.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        self.blueprint.capabilities & capability::ENCRYPTS != 0
    }

    /// What the sink stores takes RAM of this machine.
    #[must_use]
    pub fn stores_in_memory(&self) -> bool {
        self.blueprint.capabilities & capability::IN_MEMORY != 0
    }

    /// Memory can be given back while it is stored: what was written of an image is found,
    /// and can be read, before it is finished. Also where a call into a stage hangs, which
    /// keeps every other one out of a plugin that is serial.
    #[must_use]
    pub fn keeps_unfinished(&self) -> bool {
        let wanted = capability::KEEPS_UNFINISHED | capability::READ_BEFORE_COMMIT;
        self.blueprint.capabilities & wanted == wanted && !self.blueprint.is_serial
    }

    /// Longest chunk, bytes.
    #[must_use]
    pub fn chunk_len_bytes(&self) -> u64 {
        u64::from(self.blueprint.chunk_len)
    }

    /// Does everything that can fail early: opens the sink, starts the workers,
    /// allocates and touches their buffers, writes the head of the image. The target
    /// still runs.
    ///
    /// # Errors
    /// Whatever failed; nothing stays behind.
    pub fn prepare_encode(self, setup: EncodeSetup) -> Result<Encoder> {
        encode::prepare(self.foreman, self.blueprint, setup)
    }

    /// Opens a committed image by the locator its sink answered, and checks that it was
    /// encoded by these stages.
    ///
    /// # Errors
    /// [`PipelineError::Sink`] when the sink does not find it, `Corrupt`, `Config`.
    pub fn open_image(self, locator: &str) -> Result<OpenImage> {
        self.open_extent(locator, Extent::Whole)
    }

    /// The same of an image that was never finished, up to where its writer had come
    /// ([`Encoder::mark`]).
    ///
    /// # Errors
    /// As [`Pipeline::open_image`].
    pub fn open_part(self, locator: &str, mark: Mark) -> Result<OpenImage> {
        self.open_extent(locator, Extent::Part(mark))
    }

    fn open_extent(self, locator: &str, extent: Extent) -> Result<OpenImage> {
        let locator = locator.to_owned();
        self.foreman.with_chain(move |chain| {
            let sink = chain.sink()?;
            let opened = sink.handle.sink_open_existing(&locator);
            opened.map_err(|e| sink_error(&sink.alias, "cannot open the image", e))
        })?;
        let foreman = Arc::new(self.foreman);
        OpenImage::open(foreman, self.blueprint, Source::Sink, extent)
    }

    /// Opens an image file with the pipeline that it describes itself. `overrides` adds
    /// parameters that an image does not hold (keys), by alias or name of the stage, and
    /// may name another plugin file for it. A plugin is otherwise found by its name: an
    /// image cannot choose a file to be loaded.
    ///
    /// # Errors
    /// [`PipelineError::Image`], `Corrupt`, `Load`, `Config`, `Plugin`.
    pub fn open_file(
        path: &Path,
        search: &SearchPath,
        overrides: &[StageSpec],
    ) -> Result<OpenImage> {
        let file = path.to_owned();
        let open = move || match FileImage::open(&file) {
            Ok(file) => Ok(Arc::new(file) as Arc<dyn ReadImage>),
            Err(error) => Err(PipelineError::Image(ImageError::Open(error))),
        };
        Self::open(open, Some(path.to_owned()), search, overrides)
    }

    /// As [`Pipeline::open_file`], of an image that is somewhere else.
    ///
    /// # Errors
    /// As [`Pipeline::open_file`].
    pub fn open_source(
        source: Arc<dyn ReadImage>,
        search: &SearchPath,
        overrides: &[StageSpec],
    ) -> Result<OpenImage> {
        Self::open(move || Ok(source), None, search, overrides)
    }

    fn open(
        open: impl FnOnce() -> Result<Arc<dyn ReadImage>> + Send + 'static,
        path: Option<PathBuf>,
        search: &SearchPath,
        overrides: &[StageSpec],
    ) -> Result<OpenImage> {
        let calls = Arc::new(Calls::new(Some(DEFAULT_STALL_LIMIT)));
        let foreman = Foreman::start(Arc::clone(&calls))?;
        // On the foreman, because the file may lie on a server that does not answer.
        let watch = Watch::new(&calls, Who::other("the file"));
        let (source, stages, chunk_len) = foreman.run(move |_| {
            let under_way = watch.enter("opening it");
            let opened = open();
            drop(under_way);
            let source: Arc<dyn ReadImage> = Arc::new(Watched(opened?, watch));
            let reader = ImageReader::open(Arc::clone(&source));
            let reader = reader.map_err(|e| image_error("file", false, e))?;
            let stages = reader.recipe().stages.clone();
            Ok((source, stages, reader.header().chunk_len))
        })?;
        check_overrides(overrides, &stages)?;
        let coders = stages.split_last().map_or(&[][..], |(_, coders)| coders);
        let specs = coders.iter().map(|stage| with_overrides(stage, overrides));
        let (specs, search) = (specs.collect::<Vec<_>>(), search.clone());
        let load = move || Chain::load_without_sink(&specs, &search, &calls);
        let pipeline = Self::build(foreman, Workers(None), chunk_len, load)?;
        let source = Source::Elsewhere(source, path);
        let foreman = Arc::new(pipeline.foreman);
        OpenImage::open(foreman, pipeline.blueprint, source, Extent::Whole)
    }
}

/// Whether the user means a stage by `word`: she names it as it was named in its pipeline, or
/// by what it is.
pub(crate) fn is_called(word: &str, alias: &str, plugin: &str) -> bool {
    alias == word || short_name(plugin) == word
}

/// `lz4` of `/some/where/libmemcr_stage_lz4.so`; other names as they are.
pub(crate) fn short_name(name: &str) -> &str {
    if !name.contains('/') {
        return name;
    }
    let stem = Path::new(name)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or(name);
    stem.strip_prefix("libmemcr_stage_").unwrap_or(stem)
}

fn is_for(given: &StageSpec, stage: &RecipeStage) -> bool {
    is_called(&given.alias, &stage.alias, &stage.name)
}

/// A parameter for a stage that the image does not have would have no effect: a typing
/// error, most likely.
fn check_overrides(overrides: &[StageSpec], stages: &[RecipeStage]) -> Result<()> {
    let stray = |given: &&StageSpec| !stages.iter().any(|stage| is_for(given, stage));
    let Some(given) = overrides.iter().find(stray) else {
        return Ok(());
    };
    let known: Vec<_> = stages.iter().map(|stage| stage.alias.as_str()).collect();
    Err(PipelineError::Config {
        what: format!(
            "the image has no stage `{}`: its pipeline is {}",
            given.alias,
            known.join(",")
        ),
        hint: String::new(),
    })
}

/// A stage of an image as it is to be loaded.
fn with_overrides(stage: &RecipeStage, overrides: &[StageSpec]) -> StageSpec {
    let mut spec = StageSpec {
        alias: stage.alias.clone(),
        plugin: stage.name.clone(),
        params: stage.params.clone(),
    };
    for given in overrides.iter().filter(|given| is_for(given, stage)) {
        if !given.plugin.is_empty() {
            spec.plugin.clone_from(&given.plugin);
        }
        // Later values win: a key file may have moved. Whether one that decides how the
        // bytes were encoded still is what it was, `check_recipe` sees.
        spec.params.extend(given.params.iter().cloned());
    }
    spec
}

/// A length of chunks that images can have.
///
/// # Errors
/// [`PipelineError::Config`].
pub(crate) fn chunk_len(bytes: u64) -> Result<u32> {
    let len = u32::try_from(bytes)
        .ok()
        .filter(|len| limit::CHUNK_LEN.contains(len) && len % 4096 == 0);
    len.ok_or_else(|| PipelineError::Config {
        what: format!(
            "a chunk length of {bytes} bytes is not a multiple of 4096 in {:?}",
            limit::CHUNK_LEN
        ),
        hint: format!("the default is {DEFAULT_CHUNK_LEN}"),
    })
}
