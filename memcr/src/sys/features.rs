//! Kernel abilities by name, probed once.
