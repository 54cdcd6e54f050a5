//! Verdicts and books against a model that knows the truth.

mod classes;
mod histories;
mod plans;
mod play;
mod world;
