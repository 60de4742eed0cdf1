//! One small program per question.
