//! Listener, connections and shard mesh.
