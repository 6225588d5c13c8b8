package control

import "meshnode/placement/manifest"

// AppCheck says whether a file is a manifest.
type AppCheck struct {
	Meta
	File  string `json:"file"`
	App   string `json:"app,omitempty"` // its name
	Valid bool   `json:"valid"`
	// Problems are everything that is wrong, by line; empty when Valid.
	Problems []ManifestProblem `json:"problems"`
	// Warnings are what the manifest cannot help, such as a module that is not
	// built yet.
	Warnings []string `json:"warnings,omitempty"`
	// Effective is the manifest with every default filled in, where asked for.
	Effective *manifest.App `json:"effective,omitempty"`
}

// A ManifestProblem is one thing that is wrong with a manifest.
type ManifestProblem manifest.Problem

func (d *AppCheck) stamp() { d.set("AppCheck") }
