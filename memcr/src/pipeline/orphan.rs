//! What one memcr leaves to another: a pipeline that can be loaded elsewhere, and images
//! whose processes are gone.

use std::path::Path;
use std::sync::Arc;

use memcr_plugin_api::abi::code;

use crate::pipeline::links::{Chain, SinkStore, sink_error};
use crate::pipeline::open::{forget_keys, image_error};
use crate::pipeline::{
    ParamDescription, ParamType, Pipeline, PipelineError, PipelineSpec, Result, SearchPath,
    StageDescription, StageSpec,
};
use crate::sink::{ImageReader, hex};

impl Pipeline {
    /// Removes the image at `locator`, and what stages kept for it, if it is the one with
    /// this id. Only the sink of `spec` is loaded: what the other stages need, keys for
    /// one, may be gone. False: there is no such image, or another one in its place.
    ///
    /// # Errors
    /// When the image is there and stays, or what is there is no whole image.
    pub fn discard(
        spec: &PipelineSpec,
        search: &SearchPath,
        locator: &str,
        image_id: &str,
    ) -> Result<bool> {
        let sink_only = PipelineSpec {
            stages: spec.stages.last().into_iter().cloned().collect(),
            ..spec.clone()
        };
        let pipeline = Self::load(&sink_only, search)?;
        let (locator, image_id) = (locator.to_owned(), image_id.to_owned());
        pipeline
            .foreman
            .with_chain(move |chain| discard(chain, &locator, &image_id))
    }
}

/// On the foreman.
fn discard(chain: &Chain, locator: &str, image_id: &str) -> Result<bool> {
    let sink = chain.sink()?;
    match sink.handle.sink_open_existing(locator) {
        Ok(()) => {}
        Err(error) if error.code == code::NOT_FOUND => return Ok(false),
        Err(error) => return Err(sink_error(&sink.alias, "cannot open the image", error)),
    }
    let store = Arc::new(SinkStore(Arc::clone(&sink.handle)));
    let reader = ImageReader::open(store).map_err(|e| image_error(&sink.alias, false, e))?;
    let found = reader.header().image_id;
    if hex(&found) != image_id {
        return Ok(false);
    }
    drop(reader);
    let failed =
        |error| -> PipelineError { sink_error(&sink.alias, "cannot remove the image", error) };
    sink.handle.sink_remove().map_err(failed)?;
    forget_keys(&found);
    Ok(true)
}

/// A stage as another process, in another directory, loads it: paths are absolute, and
/// descriptors left out, since there they are something else.
pub(super) fn portable(spec: &StageSpec, stage: &StageDescription) -> StageSpec {
    let described = |key: &str| stage.params.iter().find(|param| param.name == key);
    let param = |(key, value): &(String, String)| {
        let value = match described(key) {
            Some(ParamDescription {
                ty: ParamType::Fd, ..
            }) => return None,
            Some(ParamDescription {
                ty: ParamType::Path,
                ..
            }) => absolute(value),
            _ => value.clone(),
        };
        Some((key.clone(), value))
    };
    StageSpec {
        alias: spec.alias.clone(),
        plugin: if spec.plugin.contains('/') {
            absolute(&spec.plugin)
        } else {
            spec.plugin.clone()
        },
        params: spec.params.iter().filter_map(param).collect(),
    }
}

/// As it is where there is no working directory: then it means nothing here either.
fn absolute(path: &str) -> String {
    let absolute = std::path::absolute(Path::new(path)).ok();
    let text = absolute.and_then(|path| path.into_os_string().into_string().ok());
    text.unwrap_or_else(|| path.to_owned())
}
