"""The one entry: `python run.py +experiment=pusht_image`. `python run.py --help` lists the rest."""

import sys

if __name__ == "__main__":  # env workers import this file: they must not pay for what follows
    if sys.platform == "win32":
        sys.exit("error: this project runs on Linux and macOS. On Windows, run it in WSL: https://aka.ms/wsl")
    try:
        from workspaces import startup

        startup.greet(sys.argv)
        startup.tune()
        import hydra
        from omegaconf import DictConfig

        from workspaces.errors import check_options, exit_with_message, full_tracebacks

        @hydra.main(version_base="1.3", config_path="configs", config_name="config")
        def main(config: DictConfig) -> float | None:
            startup.import_parts()
            from workspaces import build, sweep

            try:
                with build.workspace(config) as workspace:
                    return workspace.run()
            except Exception as error:  # here, because Hydra would print every override before it lets an error through
                code = exit_with_message(error)
                sweep.leave_job(error) if build.in_sweep() else sys.exit(code)

        check_options()
        full_tracebacks()
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("stopped at once: what was saved before is intact\n")
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        startup.close_stdout()
    except Exception as error:  # in what was typed
        sys.exit(exit_with_message(error))
