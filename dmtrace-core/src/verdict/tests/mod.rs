//! Verdicts and books against a model that knows the truth.

mod bystander;
mod calls;
mod classes;
mod clock;
mod clock_histories;
mod departures;
mod disturb;
mod due;
mod forked;
mod histories;
mod host;
mod losses;
mod lost;
mod old;
mod over;
mod overlap;
mod plans;
mod play;
mod prospects;
mod scene;
mod searched;
mod stale_plans;
mod stuck;
mod truth;
mod world;
