//! dmtrace: who leaks device-mapper udev cookies, and why.
