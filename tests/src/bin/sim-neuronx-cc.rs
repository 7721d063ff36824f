//! The stand-in `neuronx-cc` as a program, here so that cargo builds it with the tests that run it.

fn main() -> std::process::ExitCode {
    nrt::compiler::main()
}
