//! What others have written is read as far as it goes.
