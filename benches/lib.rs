//! Questions of speed, one file each.
