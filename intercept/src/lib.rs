//! The intercept role: sees the targets' answers, returns their headers to the owners.
