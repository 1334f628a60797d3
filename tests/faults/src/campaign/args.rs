//! The command line.

/// Pipelines that the kills go through: pages in the clear on a disk, and under a key
/// that nobody but memcr and the kernel's keyring knows.
const PIPELINES: [&str; 2] = ["lz4,file", "lz4,encrypt,tmpfs"];

/// Random moments per pipeline and phase, if not said otherwise.
const N_MOMENTS: usize = 300;
/// With `--quick`, over all pipelines and phases: a minute for all who wait for a test run.
const N_MOMENTS_QUICK: usize = 40;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) quick: bool,
    pub(crate) seed: u64,
    moments: Option<usize>,
    /// How long the storm is to last.
    pub(crate) seconds: Option<u64>,
    only: Vec<String>,
    pub(crate) pipelines: Vec<String>,
}

impl Args {
    /// Reads the words; `modes` are the names that `--only` knows.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn parse(
        mut words: impl Iterator<Item = String>,
        modes: &[&str],
    ) -> Result<Self, String> {
        let mut args = Self {
            quick: false,
            seed: u64::from(std::process::id()),
            moments: None,
            seconds: None,
            only: Vec::new(),
            pipelines: PIPELINES.map(str::to_owned).to_vec(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => args.quick = true,
                "--seed" => args.seed = number(&value()?)?,
                "--moments" => args.moments = Some(number(&value()?)? as usize),
                "--seconds" => args.seconds = Some(number(&value()?)?),
                "--only" => args.only = value()?.split(',').map(str::to_owned).collect(),
                "--pipeline" => args.pipelines = vec![value()?],
                _ => return Err(format!("unknown argument `{word}`")),
            }
        }
        match args
            .only
            .iter()
            .find(|name| !modes.contains(&name.as_str()))
        {
            Some(name) => Err(format!("no mode `{name}`; there are {}", modes.join(", "))),
            None => Ok(args),
        }
    }

    /// Whether the mode is to be run.
    pub(crate) fn wants(&self, mode: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == mode)
    }

    /// Random moments per pipeline and phase, of which there are so many.
    pub(crate) fn n_moments(&self, n_sets: usize) -> usize {
        let usual = match self.quick {
            true => N_MOMENTS_QUICK.div_ceil(n_sets),
            false => N_MOMENTS,
        };
        self.moments.unwrap_or(usual)
    }

    /// `full`, or `quick` with `--quick`.
    pub(crate) fn choose<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not a number"))
}
