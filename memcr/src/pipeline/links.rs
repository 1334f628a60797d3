//! The stages of a pipeline with their handles, as the foreman and the workers see them.

use std::sync::Arc;

use memcr_plugin_api::abi::{self, capability, code};
use memcr_plugin_api::sink::NewImage;
use memcr_plugin_api::stage::{Image, StageError};

use crate::pipeline::calls::{Calls, Watch, Who};
use crate::pipeline::load::{Handle, Plugin};
use crate::pipeline::{
    LinkDescription, ParamDescription, ParamType, PipelineError, Place, Result, SearchPath,
    StageKind, StageSpec, ThreadModel, order, params,
};
use crate::sink::layout::limit;
use crate::sink::recipe::{Recipe, RecipeStage};
use crate::sink::{ReadImage, WriteImage};

/// One stage with its handle.
pub(super) struct Link {
    pub(super) alias: String,
    pub(super) handle: Arc<Handle>,
    /// Parameters that an image records.
    recorded: Vec<(String, String)>,
    /// Parameters that another process has it from; `None`: one is a descriptor of this one,
    /// which whoever wants the image back gives again.
    elsewhere: Option<Vec<(String, String)>>,
}

/// Transforms and checksums in encode order, and the sink.
pub(super) struct Chain {
    pub(super) links: Vec<Link>,
    /// `None` for an image that is read from a file.
    pub(super) sink: Option<Link>,
}

/// Length of the CRC-32 of the pages, bytes.
pub(super) const PAGES_CRC_LEN: usize = 4;

/// Longest frame in front of each stage, and behind the last, for a chunk of some length.
pub(super) type Reach = [usize; limit::STAGES];

impl Link {
    fn load(spec: &StageSpec, plugin: &Plugin, calls: &Arc<Calls>) -> Result<Self> {
        let description = plugin.description();
        let resolved = params::resolve(&spec.alias, description, &spec.params)?;
        let is_recorded = |key: &str| {
            description
                .params
                .iter()
                .any(|param| param.recorded && param.name == key)
        };
        let recorded = resolved
            .iter()
            .filter(|(key, _)| is_recorded(key))
            .cloned()
            .collect();
        let is_fd = |key: &str| {
            let mut params = description.params.iter();
            params.any(|param| matches!(param.ty, ParamType::Fd) && param.name == key)
        };
        let given_fd = resolved.iter().any(|(key, _)| is_fd(key));
        let who = match description.kind {
            StageKind::Sink => Who::sink(&spec.alias),
            _ => Who::stage(&spec.alias),
        };
        let handle = Handle::create(plugin, &resolved, Watch::new(calls, who))
            .map_err(|source| stage_error(&spec.alias, Place::Step("cannot be set up"), source))?;
        Ok(Self {
            alias: spec.alias.clone(),
            handle: Arc::new(handle),
            recorded,
            elsewhere: (!given_fd).then_some(resolved),
        })
    }

    pub(super) fn can(&self, bits: u64) -> bool {
        self.handle.description().can(bits)
    }

    pub(super) fn kind(&self) -> StageKind {
        self.handle.description().kind
    }

    /// A failure of this stage while it encodes, or that does not concern bytes.
    pub(super) fn failed(&self, doing: Place, source: StageError) -> PipelineError {
        stage_error(&self.alias, doing, source)
    }

    /// A failure of this stage while it decodes: it may have proved the bytes wrong.
    pub(super) fn failed_decoding(&self, place: Place, source: StageError) -> PipelineError {
        match source.code {
            code::CORRUPT => PipelineError::Corrupt {
                place,
                what: format!("stage `{}`: {source}", self.alias),
            },
            code::WRONG_KEY => PipelineError::WrongKey {
                stage: self.alias.clone(),
                source: Box::new(source),
            },
            _ => stage_error(&self.alias, place, source),
        }
    }

    /// The same stage as another process would make it; `None`: only its user can.
    pub(super) fn made_elsewhere(&self) -> Option<Result<Handle>> {
        let params = self.elsewhere.as_ref()?;
        let made = self.handle.another(params);
        Some(made.map_err(|source| self.failed(Place::Step("cannot be set up again"), source)))
    }

    /// The parameters among `params` that decide how bytes are encoded. Those that say where
    /// something is, such as a key, may have moved; those that are not recorded an older
    /// version of the stage may have stored.
    fn decides<'a>(
        &'a self,
        params: &'a [(String, String)],
    ) -> impl Iterator<Item = &'a (String, String)> {
        let stage = self.handle.description();
        let is_free = |param: &&ParamDescription| param.place || !param.recorded;
        params.iter().filter(move |(key, _)| {
            let mut free = stage.params.iter().filter(is_free);
            !free.any(|param| param.name == *key)
        })
    }

    fn describe(&self) -> LinkDescription {
        let stage = self.handle.description();
        LinkDescription {
            alias: self.alias.clone(),
            name: stage.name.clone(),
            version: stage.version.clone(),
            kind: stage.kind,
            capabilities: stage.capabilities.clone(),
            path: stage.path.clone(),
        }
    }

    fn recipe(&self, state: Vec<u8>) -> RecipeStage {
        let stage = self.handle.description();
        let kind = match stage.kind {
            StageKind::Transform => abi::kind::TRANSFORM,
            StageKind::Checksum => abi::kind::CHECKSUM,
            StageKind::Sink => abi::kind::SINK,
        };
        RecipeStage {
            kind: kind as u8,
            alias: self.alias.clone(),
            name: stage.name.clone(),
            version: stage.version.clone(),
            params: self.recorded.clone(),
            state,
        }
    }
}

impl Chain {
    /// Loads plugins, checks order and parameters, makes handles.
    pub(super) fn load(
        stages: &[StageSpec],
        search: &SearchPath,
        calls: &Arc<Calls>,
    ) -> Result<Self> {
        let plugins = load_plugins(stages, search, calls)?;
        let described: Vec<_> = stages
            .iter()
            .zip(&plugins)
            .map(|(spec, plugin)| (spec.alias.as_str(), plugin.description()))
            .collect();
        order::check(&described)?;
        let mut links = links(stages, &plugins, calls)?;
        // `order` saw that the last one is a sink.
        let sink = links.pop();
        Ok(Self { links, sink })
    }

    /// Loads one stage, of any kind.
    pub(super) fn load_alone(
        stage: &StageSpec,
        search: &SearchPath,
        calls: &Arc<Calls>,
    ) -> Result<Self> {
        let stages = std::slice::from_ref(stage);
        let plugins = load_plugins(stages, search, calls)?;
        let links = links(stages, &plugins, calls)?;
        let (mut sinks, links): (Vec<_>, Vec<_>) = links
            .into_iter()
            .partition(|link| link.kind() == StageKind::Sink);
        let sink = sinks.pop();
        Ok(Self { links, sink })
    }

    /// Loads the stages that an image describes, but for its sink.
    pub(super) fn load_without_sink(
        stages: &[StageSpec],
        search: &SearchPath,
        calls: &Arc<Calls>,
    ) -> Result<Self> {
        let plugins = load_plugins(stages, search, calls)?;
        for (spec, plugin) in stages.iter().zip(&plugins) {
            if plugin.description().kind == StageKind::Sink {
                let what = format!(
                    "the image was encoded by `{}`, which is a sink here",
                    spec.alias
                );
                return Err(PipelineError::Config {
                    what,
                    hint: String::new(),
                });
            }
        }
        Ok(Self {
            links: links(stages, &plugins, calls)?,
            sink: None,
        })
    }

    pub(super) fn describe(&self) -> Vec<LinkDescription> {
        self.links
            .iter()
            .chain(&self.sink)
            .map(Link::describe)
            .collect()
    }

    pub(super) fn any(&self, bits: u64) -> bool {
        self.links
            .iter()
            .chain(&self.sink)
            .any(|link| link.can(bits))
    }

    /// Some stage wants its chunks in order.
    pub(super) fn is_sequential(&self) -> bool {
        !self
            .links
            .iter()
            .all(|link| link.can(capability::INDEPENDENT_CHUNKS))
    }

    /// Some plugin takes one call at a time, over all its handles: one that hangs there leaves
    /// none usable, whoever makes another.
    pub(super) fn is_serial(&self) -> bool {
        let mut links = self.links.iter().chain(&self.sink);
        links.any(|link| link.handle.description().threads == ThreadModel::Serial)
    }

    pub(super) fn sink(&self) -> Result<&Link> {
        self.sink.as_ref().ok_or_else(|| PipelineError::Config {
            what: "an image that was opened as a file has no sink".into(),
            hint: String::new(),
        })
    }

    /// Length of what follows the pages in the frame that enters the first stage: a CRC,
    /// so that bytes that a transform brings back wrong never reach the target, whatever
    /// the transform says of them. Within the frame, so that it is encrypted with it.
    /// Where no stage changes the pages the CRC of the chunk covers them, and the bench sees
    /// to it that none does.
    pub(super) fn seal_len(&self) -> usize {
        let transforms = self
            .links
            .iter()
            .any(|link| link.kind() == StageKind::Transform);
        if transforms { PAGES_CRC_LEN } else { 0 }
    }

    /// How long the frame of a chunk of `raw_len` bytes of pages can be in front of each
    /// stage. The element behind the last stage is the frame in the image.
    pub(super) fn reach(&self, raw_len: usize) -> Result<Reach> {
        let mut len = raw_len + self.seal_len();
        let mut reach = [len; limit::STAGES];
        for (k, link) in self.links.iter().enumerate() {
            let asked = |source| link.failed(Place::Step("cannot tell a bound"), source);
            let bound = link.handle.bound(len).map_err(asked)?;
            let most = if link.kind() == StageKind::Checksum {
                abi::MAX_TAG_LEN
            } else {
                2 * len + abi::MAX_GROWTH
            };
            if bound > most {
                let message =
                    format!("it asks for {bound} bytes for a frame of {len}, allowed are {most}");
                return Err(asked(StageError::new(code::INTERNAL, message)));
            }
            len = match link.kind() {
                StageKind::Checksum => len + bound,
                // A frame that the stage passed over is as long as before.
                _ if link.can(capability::COMPRESSES) => bound.max(len),
                _ => bound,
            };
            // `order` and the reader of images limit links to one less than STAGES.
            reach[k + 1] = len;
        }
        Ok(reach)
    }

    /// Starts an image: every stage's state.
    pub(super) fn begin_encode(&self, image: &Image) -> Result<Vec<RecipeStage>> {
        let mut stages = Vec::with_capacity(limit::STAGES);
        for link in &self.links {
            let state = link
                .handle
                .begin_encode(image)
                .map_err(|e| link.failed(Place::Step("cannot begin"), e))?;
            stages.push(link.recipe(state));
        }
        Ok(stages)
    }

    /// Opens the sink for an image that `stages` have begun.
    pub(super) fn open_sink(&self, mut stages: Vec<RecipeStage>, new: &NewImage) -> Result<Recipe> {
        let sink = self.sink()?;
        stages.push(sink.recipe(Vec::new()));
        sink.handle
            .sink_open_new(new)
            .map_err(|e| sink_error(&sink.alias, "cannot open a new image", e))?;
        Ok(Recipe {
            writer: concat!("memcr ", env!("CARGO_PKG_VERSION")).into(),
            stages,
        })
    }

    /// What it means that stage `k` finds its bytes wrong.
    ///
    /// The CRC of the chunk, or section, was right before any stage saw it: the image is
    /// as it was written. So the bytes are proved to be lost only if the stage has a key,
    /// without which nobody can write what it takes for right, and no stage changed them
    /// on their way to it. Otherwise some stage may have got them wrong this time or that.
    pub(super) fn judged(&self, k: usize, error: PipelineError) -> PipelineError {
        let is_plain = |link: &Link| link.kind() == StageKind::Checksum;
        let keyed = self.links[k].can(capability::AUTHENTICATES);
        match error {
            PipelineError::Corrupt { place, what }
                if !keyed || !self.links[k + 1..].iter().all(is_plain) =>
            {
                self.lied(k, place, &what)
            }
            other => other,
        }
    }

    /// Stage `k`, or one behind it, does not bring back what was given to it.
    pub(super) fn lied(&self, k: usize, place: Place, what: &str) -> PipelineError {
        let suspects: Vec<_> = self.links[k..]
            .iter()
            .enumerate()
            .filter(|(i, link)| *i == 0 || link.kind() == StageKind::Transform)
            .map(|(_, link)| format!("`{}`", link.alias))
            .collect();
        let who = match suspects.as_slice() {
            [one] => format!("stage {one}"),
            several => format!("one of the stages {}", several.join(", ")),
        };
        PipelineError::Lied {
            place,
            what: format!("{what}, though the image is as it was written: {who} got it wrong"),
        }
    }

    pub(super) fn finish_encode(&self, n_chunks: u64) -> Result<Vec<Vec<u8>>> {
        let finish = |link: &Link| {
            link.handle
                .finish_encode(n_chunks)
                .map_err(|e| link.failed(Place::Step("cannot finish the image"), e))
        };
        self.links.iter().map(finish).collect()
    }

    pub(super) fn begin_decode(&self, image: &Image, recipe: &Recipe) -> Result<()> {
        for (k, (link, stage)) in self.links.iter().zip(&recipe.stages).enumerate() {
            let begun = link.handle.begin_decode(image, &stage.state);
            let failed = |e| link.failed_decoding(Place::Step("cannot begin to decode"), e);
            begun.map_err(|e| self.judged(k, failed(e)))?;
        }
        Ok(())
    }

    pub(super) fn finish_decode(&self, n_chunks: u64, trailers: &[Vec<u8>]) -> Result<()> {
        for (k, (link, trailer)) in self.links.iter().zip(trailers).enumerate() {
            let finished = link.handle.finish_decode(n_chunks, trailer);
            let failed = |e| link.failed_decoding(Place::Step("the end of the image"), e);
            finished.map_err(|e| self.judged(k, failed(e)))?;
        }
        Ok(())
    }

    /// Whether an image was encoded by these stages with these recorded parameters.
    pub(super) fn check_recipe(&self, recipe: &Recipe) -> Result<()> {
        let written = recipe
            .stages
            .split_last()
            .map_or(&[][..], |(_, others)| others);
        let same = |link: &Link, stage: &RecipeStage| {
            link.handle.description().name == stage.name
                && link.decides(&link.recorded).eq(link.decides(&stage.params))
        };
        if written.len() == self.links.len()
            && self
                .links
                .iter()
                .zip(written)
                .all(|(link, stage)| same(link, stage))
        {
            return Ok(());
        }
        let shown = |stage: &RecipeStage| format!("{}{:?}", stage.name, stage.params);
        let ours: Vec<_> = self
            .links
            .iter()
            .map(|link| shown(&link.recipe(Vec::new())))
            .collect();
        let theirs: Vec<_> = written.iter().map(shown).collect();
        Err(PipelineError::Config {
            what: format!(
                "the image was encoded by [{}], this pipeline is [{}]",
                theirs.join(", "),
                ours.join(", ")
            ),
            hint: "restore with the pipeline and parameters of the checkpoint".into(),
        })
    }
}

/// The sink of a chain as a store of bytes.
pub(super) struct SinkStore(pub(super) Arc<Handle>);

impl WriteImage for SinkStore {
    fn write_at(&self, offset: u64, data: &[u8]) -> std::result::Result<(), StageError> {
        self.0.sink_write_at(offset, data)
    }
}

impl ReadImage for SinkStore {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::result::Result<usize, StageError> {
        self.0.sink_read_at(offset, out)
    }

    fn len(&self) -> std::result::Result<u64, StageError> {
        self.0.sink_len()
    }
}

/// What is read without a sink, with its calls known.
pub(super) struct Watched(pub(super) Arc<dyn ReadImage>, pub(super) Watch);

impl ReadImage for Watched {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::result::Result<usize, StageError> {
        let _under_way = self.1.enter("reading it");
        self.0.read_at(offset, out)
    }

    fn len(&self) -> std::result::Result<u64, StageError> {
        let _under_way = self.1.enter("asking for its length");
        self.0.len()
    }
}

pub(super) fn sink_error(alias: &str, doing: &'static str, source: StageError) -> PipelineError {
    PipelineError::Sink {
        stage: alias.into(),
        doing: Place::Step(doing),
        source: Box::new(source),
    }
}

fn stage_error(alias: &str, doing: Place, source: StageError) -> PipelineError {
    PipelineError::Plugin {
        stage: alias.into(),
        doing,
        source: Box::new(source),
    }
}

fn load_plugins(stages: &[StageSpec], search: &SearchPath, calls: &Calls) -> Result<Vec<Plugin>> {
    let load = |spec: &StageSpec| {
        // Its constructors may do anything.
        let _under_way = calls.enter(&Who::stage(&spec.alias), "loading it");
        Ok(Plugin::load(&spec.plugin, search)?)
    };
    stages.iter().map(load).collect()
}

fn links(stages: &[StageSpec], plugins: &[Plugin], calls: &Arc<Calls>) -> Result<Vec<Link>> {
    stages
        .iter()
        .zip(plugins)
        .map(|(spec, plugin)| Link::load(spec, plugin, calls))
        .collect()
}
