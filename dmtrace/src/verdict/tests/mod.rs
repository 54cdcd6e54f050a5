//! Verdicts and books against a model that knows the truth.

mod histories;
mod play;
mod world;
