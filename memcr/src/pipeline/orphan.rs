//! What one memcr leaves to another: a pipeline that can be loaded elsewhere, and images
//! whose processes are gone.

use std::path::Path;
use std::sync::Arc;

use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::stage::Image;

use crate::pipeline::links::{Chain, SinkStore, sink_error};
use crate::pipeline::open::{forget_keys, image_error};
use crate::pipeline::{
    ParamDescription, ParamType, Pipeline, PipelineSpec, Place, Result, SearchPath,
    StageDescription, StageSpec,
};
use crate::sink::recipe::RecipeStage;
use crate::sink::{hex, read_id};

impl Pipeline {
    /// Removes the image at `locator`, finished or not, if it is the one with this id, and
    /// in any case what stages kept for it. Only the sink of `spec` is loaded: what the
    /// other stages need, keys for one, may be gone. False: there is no such image, or
    /// another one in its place.
    ///
    /// # Errors
    /// When the image is there and stays, or what is there is no image.
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

/// On the foreman: whether another process could read what the stages have begun. A stage may
/// have made a secret, and that it was kept for others is known only when one of these has
/// asked for it: so each that hides something, or has to be told something, is made once more,
/// as they would, and is to begin to decode. What was given by a descriptor is given again.
pub(super) fn prove(chain: &Chain, image: &Image, begun: &[RecipeStage]) -> Result<()> {
    for (link, stage) in chain.links.iter().zip(begun) {
        if stage.state.is_empty() && !link.can(capability::ENCRYPTS) {
            continue;
        }
        let Some(other) = link.made_elsewhere().transpose()? else {
            continue;
        };
        let failed = |e| link.failed(Place::Step("cannot begin to decode"), e);
        other.begin_decode(image, &stage.state).map_err(failed)?;
    }
    Ok(())
}

/// On the foreman.
fn discard(chain: &Chain, locator: &str, image_id: &str) -> Result<bool> {
    let sink = chain.sink()?;
    match sink.handle.sink_open_existing(locator) {
        Ok(()) => {}
        Err(error) if error.code == code::NOT_FOUND => {
            forget_keys_of(image_id);
            return Ok(false);
        }
        Err(error) => return Err(sink_error(&sink.alias, "cannot open the image", error)),
    }
    // Not more than its id: of an image that was never finished there may be no more.
    let found = read_id(&SinkStore(Arc::clone(&sink.handle)));
    let found = found.map_err(|e| image_error(&sink.alias, false, e))?;
    let is_it = hex(&found) == image_id;
    if is_it {
        let failed = |error| sink_error(&sink.alias, "cannot remove the image", error);
        sink.handle.sink_remove().map_err(failed)?;
    }
    forget_keys_of(image_id);
    Ok(is_it)
}

/// What is no id of an image has no keys.
fn forget_keys_of(image_id: &str) {
    if let Ok(id) = u128::from_str_radix(image_id, 16) {
        forget_keys(&id.to_be_bytes());
    }
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
