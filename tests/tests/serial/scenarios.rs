//! The scenarios of docs/scenarios/ under all the load that a client can make, by the code that `cargo xtask example` runs.

use lb_tests::scenarios::run;

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            run(stringify!($name)).unwrap();
        }
    )*

    #[test]
    fn all_of_them_are_tested_and_have_a_page() {
        let tested = [$(stringify!($name)),*];
        for (name, ..) in lb_tests::scenarios::ALL {
            assert!(tested.contains(&name), "{name} has no test");
            let page = format!("{}/../docs/scenarios/{name}.md", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{page}: {error}"));
            assert!(text.contains(&format!("cargo xtask example {name}")), "{page} does not say how to see it");
        }
    }};
}

scenarios! { cluster scale nobody registered partition sticky nginx supervised pm2 }
