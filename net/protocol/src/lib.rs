//! The binary protocol: frames, bodies and limits, without I/O.
