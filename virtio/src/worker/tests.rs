//! Tests of the worker are with the conformance of the devices.
