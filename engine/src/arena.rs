//! Payload and result store behind relocatable handles.
