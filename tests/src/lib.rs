//! What crosses services: whole clusters, faults, learning.
