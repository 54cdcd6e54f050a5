//! Types that cross the border between the kernel programs and userspace.
#![no_std]
