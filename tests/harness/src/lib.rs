//! Helpers of the end-to-end tests: start victims, run memcr, compare what must be equal.
