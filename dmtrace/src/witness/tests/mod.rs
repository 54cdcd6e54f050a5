//! Hosts after the fact: files as a host has them, the kernel's fields of a cookie, and who it was.

mod audit;
mod context;
mod hostile;
mod live;
mod ordinary;
mod rhythm;
mod scene;
