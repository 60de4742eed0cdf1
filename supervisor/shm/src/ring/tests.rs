//! The ring as a story.
