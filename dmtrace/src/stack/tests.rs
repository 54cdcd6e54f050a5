//! Call sites of this very process.
