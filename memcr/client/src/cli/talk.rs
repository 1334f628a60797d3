//! Talking to the daemon, in whichever protocol it understands.
//!
//! ```text
//!   our own ──▶ answer
//!      │ closed without one, or answered by a number: a C memcr?
//!      ▼
//!   a new connection, v2 with -d or -z, else v1 ──▶ code
//! ```
//!
//! Asking twice does no harm: a daemon of ours that died or closed with the first request
//! under way refuses the second, or cannot be reached.

use std::time::Duration;

use memcr_client::{Answer, Ask, Client, ClientError, Code, Command, Patience, legacy};
use memcr_wire::legacy::Version;

use super::order::{Order, Speaks};

/// How long to wait for an answer that takes no work, unless `--timeout` says so.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How much longer than `--timeout` to wait for a daemon that knows of it: it has an undo
/// to do then, and an answer to write.
const GRACE: Duration = Duration::from_secs(10);

/// What the daemon said.
pub(crate) enum Said {
    /// In our own protocol: it was done.
    Answer(Box<Answer>),
    /// In the old one, done or not.
    Code(Version, Code),
}

/// Why there is no answer.
pub(crate) struct Silence {
    pub(crate) error: ClientError,
    /// What happened before, when our own protocol was tried.
    pub(crate) before: Option<ClientError>,
}

/// A conversation with one daemon.
pub(crate) struct Talk<'a> {
    order: &'a Order,
    client: Option<Client>,
    /// The daemon is known, or said, to speak the old protocol.
    is_old: bool,
}

impl<'a> Talk<'a> {
    pub(crate) fn new(order: &'a Order) -> Self {
        Self {
            order,
            client: None,
            is_old: order.speaks != Speaks::Own,
        }
    }

    /// Has a process, or several, checkpointed or restored.
    pub(crate) fn procedure(&mut self, command: Command) -> Result<Said, Silence> {
        if self.is_old {
            return self.ask_old(command, None);
        }
        // An order of a procedure without a subject is refused with the command line.
        let Some(ask) = self.order.ask(command) else {
            return self.ask_old(command, None);
        };
        let patience = self.order.timeout.map(|time| time.saturating_add(GRACE));
        match self.ask_own(&ask, patience) {
            Ok(answer) => Ok(Said::Answer(Box::new(answer))),
            Err(error) if error.may_be_old_daemon() => self.ask_old(command, Some(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for what only our own protocol knows.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Result<Answer, Silence> {
        let patience = self.order.timeout.unwrap_or(ANSWER_WITHIN);
        Ok(self.ask_own(ask, Some(patience))?)
    }

    fn ask_own(&mut self, ask: &Ask, patience: Option<Duration>) -> Result<Answer, ClientError> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::connect(&self.order.location)?),
        };
        client.set_patience(patience);
        client.ask(ask.clone())
    }

    fn ask_old(&mut self, command: Command, before: Option<ClientError>) -> Result<Said, Silence> {
        let Some(request) = self.order.old(command) else {
            let error = before.unwrap_or(ClientError::Closed);
            return Err(error.into());
        };
        let patience = Patience {
            answer: self.order.timeout,
            ..Patience::default()
        };
        let result = legacy::ask(&self.order.location, patience, &request);
        let code = result.map_err(|error| Silence { error, before })?;
        self.is_old = true;
        Ok(Said::Code(request.version, code))
    }
}

impl From<ClientError> for Silence {
    fn from(error: ClientError) -> Self {
        Self {
            error,
            before: None,
        }
    }
}
