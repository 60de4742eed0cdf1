//! Enums whose variants are array indices and have one stable name each, used in counters, JSON and documents.

/// Declares a field-less enum with `COUNT`, `ALL`, `name()` and `index()`.
///
/// The order of the variants is the order of the counters in shared memory, so it is part of the region's layout.
#[macro_export]
macro_rules! named_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$vmeta:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        $vis enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every variant, in index order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];
            /// How many variants there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name, as in `stats --json`.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }

            /// The position in `ALL` and in arrays of counters.
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}
