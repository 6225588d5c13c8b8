package suspend

import "sort"

// Module names a worker may import functions from.
const (
	HostModule = "meshnode_v1"
	WASIModule = "wasi_snapshot_preview1"
)

// hostFunctions are the functions a worker may import, with their types: those
// whose state the host can carry. The types of WASI are those of its preview1
// witx files.
var hostFunctions = map[string]map[string]string{
	HostModule: {
		"event_read":     "(i32, i32, i32) -> (i32)",
		"reply":          "(i32, i32) -> (i32)",
		"send":           "(i32, i32, i32, i32) -> (i32)",
		"timer_set":      "(i64, i64, i64) -> (i32)",
		"timer_cancel":   "(i64) -> (i32)",
		"log":            "(i32, i32, i32) -> ()",
		"clock":          "() -> (i64)",
		"random":         "(i32, i32) -> (i32)",
		"interface_read": "(i32, i32, i32, i32) -> (i32)",
	},
	WASIModule: {
		"args_get":                "(i32, i32) -> (i32)",
		"args_sizes_get":          "(i32, i32) -> (i32)",
		"environ_get":             "(i32, i32) -> (i32)",
		"environ_sizes_get":       "(i32, i32) -> (i32)",
		"clock_res_get":           "(i32, i32) -> (i32)",
		"clock_time_get":          "(i32, i64, i32) -> (i32)",
		"fd_advise":               "(i32, i64, i64, i32) -> (i32)",
		"fd_allocate":             "(i32, i64, i64) -> (i32)",
		"fd_close":                "(i32) -> (i32)",
		"fd_datasync":             "(i32) -> (i32)",
		"fd_fdstat_get":           "(i32, i32) -> (i32)",
		"fd_fdstat_set_flags":     "(i32, i32) -> (i32)",
		"fd_fdstat_set_rights":    "(i32, i64, i64) -> (i32)",
		"fd_filestat_get":         "(i32, i32) -> (i32)",
		"fd_filestat_set_size":    "(i32, i64) -> (i32)",
		"fd_filestat_set_times":   "(i32, i64, i64, i32) -> (i32)",
		"fd_pread":                "(i32, i32, i32, i64, i32) -> (i32)",
		"fd_prestat_get":          "(i32, i32) -> (i32)",
		"fd_prestat_dir_name":     "(i32, i32, i32) -> (i32)",
		"fd_pwrite":               "(i32, i32, i32, i64, i32) -> (i32)",
		"fd_read":                 "(i32, i32, i32, i32) -> (i32)",
		"fd_readdir":              "(i32, i32, i32, i64, i32) -> (i32)",
		"fd_renumber":             "(i32, i32) -> (i32)",
		"fd_seek":                 "(i32, i64, i32, i32) -> (i32)",
		"fd_sync":                 "(i32) -> (i32)",
		"fd_tell":                 "(i32, i32) -> (i32)",
		"fd_write":                "(i32, i32, i32, i32) -> (i32)",
		"path_create_directory":   "(i32, i32, i32) -> (i32)",
		"path_filestat_get":       "(i32, i32, i32, i32, i32) -> (i32)",
		"path_filestat_set_times": "(i32, i32, i32, i32, i64, i64, i32) -> (i32)",
		"path_link":               "(i32, i32, i32, i32, i32, i32, i32) -> (i32)",
		"path_open":               "(i32, i32, i32, i32, i32, i64, i64, i32, i32) -> (i32)",
		"path_readlink":           "(i32, i32, i32, i32, i32, i32) -> (i32)",
		"path_remove_directory":   "(i32, i32, i32) -> (i32)",
		"path_rename":             "(i32, i32, i32, i32, i32, i32) -> (i32)",
		"path_symlink":            "(i32, i32, i32, i32, i32) -> (i32)",
		"path_unlink_file":        "(i32, i32, i32) -> (i32)",
		"poll_oneoff":             "(i32, i32, i32, i32) -> (i32)",
		"proc_exit":               "(i32) -> ()",
		"proc_raise":              "(i32) -> (i32)",
		"random_get":              "(i32, i32) -> (i32)",
		"sched_yield":             "() -> (i32)",
		"sock_accept":             "(i32, i32, i32) -> (i32)",
		"sock_recv":               "(i32, i32, i32, i32, i32, i32) -> (i32)",
		"sock_send":               "(i32, i32, i32, i32, i32) -> (i32)",
		"sock_shutdown":           "(i32, i32) -> (i32)",
	},
}

// HostFunctions lists every function a worker may import, ordered by module and
// name: what a host of workers must provide.
func HostFunctions() []Import {
	var all []Import
	for module, functions := range hostFunctions {
		for name, typ := range functions {
			all = append(all, Import{Module: module, Name: name, Type: typ})
		}
	}
	sort.Slice(all, func(i, j int) bool {
		if all[i].Module != all[j].Module {
			return all[i].Module < all[j].Module
		}
		return all[i].Name < all[j].Name
	})
	return all
}

// checkImport refuses a function that no host of workers provides.
func checkImport(module, name, typ string) *RefusedError {
	functions, ok := hostFunctions[module]
	if !ok {
		e := &RefusedError{
			Feature: "import " + quote(module) + " " + quote(name),
			Why:     "no node provides it, and its state could not move",
			Hint:    "import from " + HostModule + " or " + WASIModule + " only",
		}
		if module == "wasi_unstable" || module == "wasi" {
			e.Hint = "compile for WASI preview1 (" + WASIModule + ") with a newer toolchain"
		}
		return e
	}
	want, ok := functions[name]
	if !ok {
		return &RefusedError{
			Feature: "import " + quote(module) + " " + quote(name),
			Why:     module + " has no function of that name",
			Hint:    "check the name, or update the node if the module was made for a newer one",
		}
	}
	if typ != want {
		return &RefusedError{
			Feature: "import " + quote(module) + " " + quote(name),
			Why:     "it is imported as " + typ + " but is " + want,
			Hint:    "declare it with that type",
		}
	}
	return nil
}
