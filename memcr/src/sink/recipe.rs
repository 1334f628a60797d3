//! The pipeline as an image describes it: all that a restore needs, but no secrets.
//!
//! ```text
//! PIPE  writer (u16 + text) · n u16 · n × { kind u8 · alias · name · version (u16 + text each) ·
//!                                           n_params u16 · n_params × { key · value } · state (u16 + bytes) }
//! ```

use memcr_plugin_api::abi;
use memcr_plugin_api::stage::is_name;

use crate::sink::bytes::{Fields, Short, put_bytes16};
use crate::sink::layout::limit;

/// One stage of the pipeline that wrote an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RecipeStage {
    /// One of [`abi::kind`].
    pub(crate) kind: u8,
    pub(crate) alias: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// Recorded parameters only.
    pub(crate) params: Vec<(String, String)>,
    /// What `begin_encode` answered.
    pub(crate) state: Vec<u8>,
}

/// The pipeline that wrote an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// Program and version that wrote it.
    pub(crate) writer: String,
    pub(crate) stages: Vec<RecipeStage>,
}

impl Recipe {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes16(&mut out, self.writer.as_bytes());
        put_count(&mut out, self.stages.len());
        for stage in &self.stages {
            out.push(stage.kind);
            for text in [&stage.alias, &stage.name, &stage.version] {
                put_bytes16(&mut out, text.as_bytes());
            }
            put_count(&mut out, stage.params.len());
            for text in stage.params.iter().flat_map(|(key, value)| [key, value]) {
                put_bytes16(&mut out, text.as_bytes());
            }
            put_bytes16(&mut out, &stage.state);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut f = Fields::new(bytes);
        let recipe = Self::fields(&mut f)?;
        if !f.is_empty() {
            return Err("bytes follow its last stage".into());
        }
        recipe.check()?;
        Ok(recipe)
    }

    fn fields(f: &mut Fields<'_>) -> Result<Self, String> {
        let writer = text(f)?;
        let n = f.u16().map_err(short)?;
        if usize::from(n) > limit::STAGES {
            return Err(format!("{n} stages are more than {}", limit::STAGES));
        }
        let stages = (0..n).map(|_| stage(f)).collect::<Result<_, _>>()?;
        Ok(Self { writer, stages })
    }

    /// One sink, last; every kind known; no name that stages do not have (a path would be a file
    /// to load), no state longer than a stage may write.
    fn check(&self) -> Result<(), String> {
        let sink = abi::kind::SINK as u8;
        let Some((last, others)) = self.stages.split_last() else {
            return Err("it has no stages".into());
        };
        let coder = |stage: &RecipeStage| {
            stage.kind == abi::kind::TRANSFORM as u8 || stage.kind == abi::kind::CHECKSUM as u8
        };
        if last.kind != sink || !others.iter().all(coder) {
            return Err(
                "its stages are not transforms and checksums with a sink at the end".into(),
            );
        }
        if let Some(stage) = self.stages.iter().find(|stage| !is_name(&stage.name)) {
            return Err(format!(
                "`{}` is no name of a stage",
                stage.name.escape_debug()
            ));
        }
        if self
            .stages
            .iter()
            .any(|stage| stage.state.len() > abi::MAX_STATE_LEN)
        {
            return Err(format!(
                "the state of a stage is longer than {} bytes",
                abi::MAX_STATE_LEN
            ));
        }
        Ok(())
    }
}

fn stage(f: &mut Fields<'_>) -> Result<RecipeStage, String> {
    let kind = f.u8().map_err(short)?;
    let (alias, name, version) = (text(f)?, text(f)?, text(f)?);
    let n_params = f.u16().map_err(short)?;
    // Grows with the bytes that are really there, not with the number that is claimed.
    let mut params = Vec::new();
    for _ in 0..n_params {
        params.push((text(f)?, text(f)?));
    }
    let state = f.bytes16().map_err(short)?.to_vec();
    Ok(RecipeStage {
        kind,
        alias,
        name,
        version,
        params,
        state,
    })
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    // At most 16 stages, at most 64 parameters.
    out.extend_from_slice(&(count as u16).to_le_bytes());
}

fn text(f: &mut Fields<'_>) -> Result<String, String> {
    let bytes = f.bytes16().map_err(short)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| "a text in it is not UTF-8".into())
}

fn short(_: Short) -> String {
    "it ends in the middle".into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn recipe() -> Recipe {
        let coder = RecipeStage {
            kind: 1,
            alias: "compress".into(),
            name: "lz4".into(),
            version: "0.1.0".into(),
            params: vec![("level".into(), "3".into())],
            state: vec![1, 2, 3],
        };
        let sink = RecipeStage {
            kind: 3,
            name: "file".into(),
            ..RecipeStage::default()
        };
        Recipe {
            writer: "memcr".into(),
            stages: vec![coder, sink],
        }
    }

    #[test]
    fn comes_back_and_may_not_be_cut() {
        let bytes = recipe().encode();
        assert_eq!(Recipe::decode(&bytes), Ok(recipe()));
        for len in 0..bytes.len() {
            assert!(Recipe::decode(&bytes[..len]).is_err(), "{len}");
        }
        assert!(Recipe::decode(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn stages_that_are_no_pipeline_are_refused() {
        let mut turned = recipe();
        turned.stages.reverse();
        assert!(
            Recipe::decode(&turned.encode())
                .unwrap_err()
                .contains("sink at the end")
        );
        assert!(
            Recipe::decode(&Recipe::default().encode())
                .unwrap_err()
                .contains("no stages")
        );
        let mut many = recipe();
        many.stages = vec![many.stages[0].clone(); 17];
        assert!(
            Recipe::decode(&many.encode())
                .unwrap_err()
                .contains("more than 16")
        );
        for name in ["", "./libmemcr_stage_lz4.so", "/tmp/lz4", "Lz4", "lz4\n"] {
            let mut other = recipe();
            other.stages[0].name = name.into();
            let error = Recipe::decode(&other.encode()).unwrap_err();
            assert!(error.contains("no name of a stage"), "{name:?}: {error}");
        }
        let mut fat = recipe();
        fat.stages[0].state = vec![0; 4097];
        assert!(
            Recipe::decode(&fat.encode())
                .unwrap_err()
                .contains("longer than 4096")
        );
    }
}
