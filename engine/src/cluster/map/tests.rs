//! The map: legal changes, refusals, and bytes that come back or are refused.
