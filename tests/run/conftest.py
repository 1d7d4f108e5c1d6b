from tests.support.fixtures import command, config, data_root, one_thread, own_data_root, tiny_root, tools

__all__ = ["command", "config", "data_root", "one_thread", "own_data_root", "tiny_root", "tools"]
